package resolver

import "testing"

// exampleBody is the request of protocol 1.10.
const exampleBody = `{"app_id":"com.demo.app","device_id":"00009a6b-eefe-490a-9c60-8e965132ae51","custom_id":"",
 "platform":"android","version_build":"1.0.0","version_code":"10","version_os":"14",
 "version_name":"builtin","plugin_version":"8.51.14","is_emulator":false,"is_prod":true,
 "install_source":"google_play","defaultChannel":"beta"}`

func BenchmarkParseCheck(b *testing.B) {
	var p CheckParser
	body := []byte(exampleBody)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Parse(body); err != nil {
			b.Fatal(err)
		}
	}
}
