package resolver

import (
	"encoding/json"
	"strings"
	"testing"
)

// observed is an observation as it is saved: its two parts.
func observed(t *testing.T, request, answer string) (r, a json.RawMessage) {
	t.Helper()
	o, err := NewObservation([]byte(request), []byte(answer))
	if err != nil {
		t.Fatal(err)
	}
	var parts struct{ Request, Answer json.RawMessage }
	if err := json.Unmarshal(toJSON(t, o), &parts); err != nil {
		t.Fatal(err)
	}
	return parts.Request, parts.Answer
}

// An observation is saved and sent around.
func TestObservationTellsNoSecrets(t *testing.T) {
	const (
		key     = "orgs/o/apps/com.demo.app/delta/h_a.js"
		request = `{"app_id":"com.demo.app","device_id":"AAAAAAAA-0000-4000-8000-00000000SECR","custom_id":"SECRET","platform":"ios",
			"version_name":"1.0.0","version_build":"1.0.0","plugin_version":"8.51.14","defaultChannel":"beta","email":"SECRET"}`
		answer = `{"version":"1.1.0","url":"https://SECRET:SECRET@cdn.test/SECRET.zip?X-Amz-Signature=SECRET","session_key":"SECRET",
			"message":"for AAAAAAAA-0000-4000-8000-00000000SECR","manifest":[
			{"file_name":"a.js","file_hash":"h","download_url":"https://SECRET@up.test/SECRET/files/read/attachments/` + key + `?device_id=SECRET&token=SECRET&key=2&sig=SECRET#SECRET"},
			{"file_name":"b.js","file_hash":"h","download_url":"https://cdn.test/b.js?X-Amz-Signature=SECRET"},
			{"file_name":"c.js","file_hash":"h","download_url":"https://up.test/files/read/attachments/` + key + `?key=SECRET"}]}`
	)
	r, a := observed(t, request, answer)
	if all := string(r) + string(a); strings.Contains(strings.ToUpper(all), "SECR") {
		t.Errorf("it tells %s", all)
	}
	wantRequest := `{"device":"` + deviceDigest("aaaaaaaa-0000-4000-8000-00000000secr") + `","platform":"ios","defaultChannel":"beta",` +
		`"version_name":"1.0.0","version_build":"1.0.0","plugin_version":"8.51.14"}`
	wantAnswer := `{"version":"1.1.0","manifest":[{"file_name":"a.js","file_hash":"h","download_url":"/files/read/attachments/` + key + `?key=2"},` +
		`{"file_name":"b.js","file_hash":"h","download_url":""},{"file_name":"c.js","file_hash":"h","download_url":""}]}`
	if string(r) != wantRequest || string(a) != wantAnswer {
		t.Errorf("it tells\n%s\n%s", r, a)
	}
	if again, _ := observed(t, string(r), string(a)); string(again) != string(r) {
		t.Errorf("of itself it makes %s", again)
	}
	if _, err := NewObservation([]byte(`{}`), []byte(`x`)); err == nil {
		t.Error("an answer of text is read")
	}
}
