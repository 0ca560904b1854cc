package resolver

// EventOf is the action that the official server notes for an answer with this code, or for an offer, which has none. It is
// empty for a code that it notes nothing for (protocol 4.4).
func EventOf(code string) string {
	if code == "" {
		return eventGet
	}
	for i := range rules {
		if rules[i].code == code {
			return rules[i].event
		}
	}
	return ""
}

// AppendWithDeviceID appends a check as another device would ask it. check must be valid JSON.
func AppendWithDeviceID(dst, check []byte, device string) []byte {
	dst, rest := appendMembers(dst, string(check), func(m member) (string, bool) {
		if m.name == fieldNames[fDeviceID] {
			return quoted(device), true
		}
		return "", true
	})
	return append(dst, rest...)
}
