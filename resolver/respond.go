package resolver

import "github.com/go-json-experiment/json/jsontext"

// AppendResponse appends the JSON body of a decision. base is the public address of the edge, "https://host/prefix",
// without a slash at its end; it must not need escaping in JSON.
func AppendResponse(dst []byte, d *Decision, base string) []byte {
	if d.Outcome == Offer {
		return appendOffer(dst, d, base)
	}
	dst = append(dst, `{"error":"`...)
	dst = append(dst, d.Code...)
	dst = appendMember(dst, `","message":`, d.Message)
	switch d.show {
	case showNothing:
	case showKeyIDs:
		dst = appendMember(dst, `,"deviceKeyId":`, d.check.KeyID)
		dst = appendMember(dst, `,"bundleKeyId":`, d.Bundle.keyID)
	case showOldName:
		dst = appendMember(dst, `,"version":`, d.Bundle.Name)
		dst = appendMember(dst, `,"old":`, d.check.VersionName)
	case showMajor:
		dst = append(dst, `,"major":true`...)
		fallthrough
	case showOldBuild:
		dst = appendMember(dst, `,"version":`, d.Bundle.Name)
		dst = appendMember(dst, `,"old":`, d.check.VersionBuild)
	case showVersion:
		dst = appendMember(dst, `,"version":`, d.Bundle.Name)
	}
	dst = append(dst, `,"kind":"`...)
	dst = append(dst, d.Outcome.String()...)
	return append(dst, `"}`...)
}

func appendOffer(dst []byte, d *Decision, base string) []byte {
	dst = d.Bundle.head.append(dst, base)
	if d.withFiles {
		dst = d.Bundle.files.append(dst, base)
	}
	if d.withMeta {
		dst = append(dst, d.Bundle.meta...)
	}
	return append(dst, '}')
}

// appendMember appends a member's name, as given, and its value as a JSON string. Invalid UTF-8 becomes U+FFFD.
func appendMember(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst, _ = jsontext.AppendQuote(dst, value)
	return dst
}

// AppendRefusal appends the JSON body of a refusal. Such answers have no "kind" (protocol 1.5).
func AppendRefusal(dst []byte, r *Refusal) []byte {
	dst = appendMember(dst, `{"error":`, r.Code)
	dst = appendMember(dst, `,"message":`, r.Message)
	switch {
	case r.AppID != "":
		dst = appendMember(dst, `,"app_id":`, r.AppID)
		dst = appendMember(dst, `,"version_name":`, r.VersionName)
	case r.Status == 400 && r.VersionBuild == "" && len(r.Issues) == 0:
		dst = append(dst, `,"moreInfo":{}`...)
	default:
		dst = r.appendMoreInfo(dst)
	}
	return append(dst, '}')
}

// appendMoreInfo appends the member with a refusal's details, if it has any.
func (r *Refusal) appendMoreInfo(dst []byte) []byte {
	switch {
	case r.AppID != "":
		dst = appendMember(dst, `,"moreInfo":{"app_id":`, r.AppID)
		dst = appendMember(dst, `,"version_name":`, r.VersionName)
		return append(dst, '}')
	case r.VersionBuild != "":
		dst = appendMember(dst, `,"moreInfo":{"version_build":`, r.VersionBuild)
		return append(dst, '}')
	case len(r.Issues) == 0:
		return dst
	}
	dst = append(dst, `,"moreInfo":{"parseResult":[`...)
	for i, issue := range r.Issues {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendMember(dst, `{"code":`, issue.Code)
		dst = append(dst, `,"path":[`...)
		if issue.Field != "" {
			dst = appendMember(dst, "", issue.Field)
		}
		dst = appendMember(dst, `],"message":`, issue.Message)
		dst = append(dst, '}')
	}
	return append(dst, `]}`...)
}
