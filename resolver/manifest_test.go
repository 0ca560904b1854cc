package resolver

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// inApp puts members beside a valid app.
func inApp(members string) string { return `{"app":{"app_id":"com.demo.app"},` + members + `}` }

// inVersion and its like put members into the one row of an otherwise valid document.
func inVersion(members string) string {
	return inApp(`"versions":[{"id":1,"name":"1.1.0"` + members + `}]`)
}

func inFile(members string) string {
	return inVersion(`,"manifest":[{"file_name":"a","file_hash":"b","s3_path":"k/a"` + members + `}]`)
}

func inChannel(members string) string {
	return inApp(`"channels":[{"id":1,"name":"production"` + members + `}]`)
}

func inDevice(members string) string {
	return inApp(`"channels":[{"id":1,"name":"a"}],"channel_devices":[{` + members + `}]`)
}

// faultsOf returns what is wrong with doc. It fails if nothing is, or if one place is told of twice.
func faultsOf(t testing.TB, doc string) []Fault {
	t.Helper()
	m, err := ParseManifest([]byte(doc))
	if err == nil {
		t.Fatalf("accepted: %.300s", doc)
	}
	if m != nil {
		t.Error("a manifest is returned beside the error")
	}
	var faults *Faults
	if !errors.As(err, &faults) || len(faults.List) == 0 {
		t.Fatalf("the error is %T: %v, want *Faults", err, err)
	}
	seen := map[string]bool{}
	for _, f := range faults.List {
		if seen[f.Path] {
			t.Errorf("two faults at %s: %v", f.Path, faults.List)
		}
		seen[f.Path] = true
	}
	return faults.List
}

const (
	isRequired   = "is required"
	wantText     = "must be a string"
	wantBool     = "must be true or false"
	wantWhole    = "must be a whole number"
	wantArray    = "must be an array"
	wantObject   = "must be an object"
	idRange      = "must be between 0 and 9007199254740991"
	bpsRange     = "must be between 0 and 10000"
	betweenRange = "must be above 0 and below 1"
)

const isExternalKey = "must not begin with ext/, where the edge has objects that are not in the storage"

const wantPolicy = "must be one of major, minor, patch, version_number, none"

// manifestFault is a document and all that is wrong with it.
type manifestFault struct {
	name, doc string
	want      []Fault
}

// manifestFaults are those that a JSON schema can see as well.
var manifestFaults = []manifestFault{
	{"null", `null`, []Fault{{"$", wantObject}}},
	{"array", `[]`, []Fault{{"$", wantObject}}},
	{"text", `"x"`, []Fault{{"$", wantObject}}},
	{"number", `5`, []Fault{{"$", wantObject}}},
	{"empty object", `{}`, []Fault{{"$.app", isRequired}}},
	{"no app", `{"versions":[],"channels":[]}`, []Fault{{"$.app", isRequired}}},
	{"app is null", `{"app":null}`, []Fault{{"$.app", wantObject}}},
	{"app is an array", `{"app":[]}`, []Fault{{"$.app", wantObject}}},
	{"app is empty", `{"app":{}}`, []Fault{{"$.app.app_id", isRequired}}},
	{"app_id is null", `{"app":{"app_id":null}}`, []Fault{{"$.app.app_id", isRequired}}},
	{"app_id is empty", `{"app":{"app_id":""}}`, []Fault{{"$.app.app_id", isRequired}}},

	{"versions is an object", inApp(`"versions":{}`), []Fault{{"$.versions", wantArray}}},
	{"channels is a text", inApp(`"channels":"x"`), []Fault{{"$.channels", wantArray}}},
	{"channel_devices is a number", inApp(`"channel_devices":1`), []Fault{{"$.channel_devices", wantArray}}},
	{"version is null", inApp(`"versions":[null]`), []Fault{{"$.versions[0]", wantObject}}},
	{"version is an array", inApp(`"versions":[{"id":1,"name":"a"},[]]`), []Fault{{"$.versions[1]", wantObject}}},
	{"channel is a number", inApp(`"channels":[7]`), []Fault{{"$.channels[0]", wantObject}}},
	{"device is true", inApp(`"channel_devices":[true]`), []Fault{{"$.channel_devices[0]", wantObject}}},
	{"manifest is an object", inVersion(`,"manifest":{}`), []Fault{{"$.versions[0].manifest", wantArray}}},
	{"file is null", inVersion(`,"manifest":[null]`), []Fault{{"$.versions[0].manifest[0]", wantObject}}},

	{"version without id", inApp(`"versions":[{"name":"a"}]`), []Fault{{"$.versions[0].id", isRequired}}},
	{"version with id null", inApp(`"versions":[{"id":null,"name":"a"}]`), []Fault{{"$.versions[0].id", isRequired}}},
	{"version without name", inApp(`"versions":[{"id":1}]`), []Fault{{"$.versions[0].name", isRequired}}},
	{"version with an empty name", inApp(`"versions":[{"id":1,"name":""}]`), []Fault{{"$.versions[0].name", isRequired}}},
	{"version without anything", inApp(`"versions":[{}]`), []Fault{{"$.versions[0].name", isRequired}, {"$.versions[0].id", isRequired}}},
	{"channel without id", inApp(`"channels":[{"name":"a"}]`), []Fault{{"$.channels[0].id", isRequired}}},
	{"channel without name", inApp(`"channels":[{"id":1}]`), []Fault{{"$.channels[0].name", isRequired}}},
	{"file without file_name", inVersion(`,"manifest":[{"file_hash":"b","s3_path":"c"}]`), []Fault{{"$.versions[0].manifest[0].file_name", isRequired}}},
	{"file without file_hash", inVersion(`,"manifest":[{"file_name":"a","s3_path":"c"}]`), []Fault{{"$.versions[0].manifest[0].file_hash", isRequired}}},
	{"file without s3_path", inVersion(`,"manifest":[{"file_name":"a","file_hash":"b"}]`), []Fault{{"$.versions[0].manifest[0].s3_path", isRequired}}},
	{
		"file without anything", inVersion(`,"manifest":[{}]`), []Fault{
			{"$.versions[0].manifest[0].file_name", isRequired},
			{"$.versions[0].manifest[0].file_hash", isRequired},
			{"$.versions[0].manifest[0].s3_path", isRequired},
		},
	},
	{"device without device_id", inDevice(`"channel_id":1`), []Fault{{"$.channel_devices[0].device_id", isRequired}}},
	{"device without channel_id", inDevice(`"device_id":"` + testDevice + `"`), []Fault{{"$.channel_devices[0].channel_id", isRequired}}},

	{"unknown policy", inChannel(`,"disable_auto_update":"always"`), []Fault{{"$.channels[0].disable_auto_update", wantPolicy}}},
	{"empty policy", inChannel(`,"disable_auto_update":""`), []Fault{{"$.channels[0].disable_auto_update", wantPolicy}}},
	{"policy in capitals", inChannel(`,"disable_auto_update":"Major"`), []Fault{{"$.channels[0].disable_auto_update", wantPolicy}}},
	{"percentage above all", inChannel(`,"rollout_percentage_bps":10001`), []Fault{{"$.channels[0].rollout_percentage_bps", bpsRange}}},
	{"percentage below none", inChannel(`,"rollout_percentage_bps":-1`), []Fault{{"$.channels[0].rollout_percentage_bps", bpsRange}}},
	{"percentage with a fraction", inChannel(`,"rollout_percentage_bps":0.5`), []Fault{{"$.channels[0].rollout_percentage_bps", wantWhole}}},
	{"failure rate above all", inChannel(`,"auto_pause_failure_rate_bps":10001`), []Fault{{"$.channels[0].auto_pause_failure_rate_bps", bpsRange}}},
	{"confidence of a hundred per cent", inChannel(`,"auto_pause_confidence":1`), []Fault{{"$.channels[0].auto_pause_confidence", betweenRange}}},
	{"confidence is a text", inChannel(`,"auto_pause_confidence":"0.95"`), []Fault{{"$.channels[0].auto_pause_confidence", "must be a number"}}},

	{"bundle key with ..", inVersion(`,"r2_path":"orgs/../x.zip"`), []Fault{{"$.versions[0].r2_path", "must not contain a segment . or .."}}},
	{"bundle key with .", inVersion(`,"r2_path":"orgs/./x.zip"`), []Fault{{"$.versions[0].r2_path", "must not contain a segment . or .."}}},
	{"bundle key with //", inVersion(`,"r2_path":"orgs//x.zip"`), []Fault{{"$.versions[0].r2_path", "must not start with / or contain //"}}},
	{"bundle key with /", inVersion(`,"r2_path":"/orgs/x.zip"`), []Fault{{"$.versions[0].r2_path", "must not start with / or contain //"}}},
	{"bundle key with \\", inVersion(`,"r2_path":"orgs\\x.zip"`), []Fault{{"$.versions[0].r2_path", `must not contain \`}}},
	{"bundle key with NUL", inVersion(`,"r2_path":"orgs\u0000x.zip"`), []Fault{{"$.versions[0].r2_path", "must not contain NUL"}}},
	{"bundle key too long", inVersion(`,"r2_path":"` + strings.Repeat("k", 1025) + `"`), []Fault{{"$.versions[0].r2_path", "is longer than 1024 bytes"}}},
	{"bundle key with escaped dots", inVersion(`,"r2_path":"orgs/%2e%2E/x.zip"`), []Fault{{"$.versions[0].r2_path", "must not contain a segment . or .."}}},
	{"bundle key of an object outside", inVersion(`,"r2_path":"ext/com.demo.app/1.zip"`), []Fault{{"$.versions[0].r2_path", isExternalKey}}},
	{"bundle key of an object outside, escaped", inVersion(`,"r2_path":"e%78t%2Fcom.demo.app/1.zip"`), []Fault{{"$.versions[0].r2_path", isExternalKey}}},
	{
		"file key of an object outside", inVersion(`,"manifest":[{"file_name":"a","file_hash":"b","s3_path":"ext/a"}]`),
		[]Fault{{"$.versions[0].manifest[0].s3_path", isExternalKey}},
	},
	{
		"file key with ..", inVersion(`,"manifest":[{"file_name":"a","file_hash":"b","s3_path":"k"},{"file_name":"a","file_hash":"b","s3_path":".."}]`),
		[]Fault{{"$.versions[0].manifest[1].s3_path", "must not contain a segment . or .."}},
	},
}

// referenceFaults concern more than one row, which is beyond a schema.
var referenceFaults = []manifestFault{
	{"channel of no version", inChannel(`,"version":9`), []Fault{{"$.channels[0].version", "9 is not the id of a version"}}},
	{"rollout of no version", inChannel(`,"rollout_version":9`), []Fault{{"$.channels[0].rollout_version", "9 is not the id of a version"}}},
	{
		"override of no channel", inDevice(`"device_id":"` + testDevice + `","channel_id":9`),
		[]Fault{{"$.channel_devices[0].channel_id", "9 is not the id of a channel"}},
	},
	{
		"two versions of one id", inApp(`"versions":[{"id":1,"name":"a"},{"id":2,"name":"a"},{"id":1,"name":"b"}]`),
		[]Fault{{"$.versions[2].id", "is the id of $.versions[0] already"}},
	},
	{
		"rows without id beside one of id 0",
		inApp(`"versions":[{"name":"a"},{"id":0,"name":"b"},{"id":"0","name":"c"}],
			"channels":[{"name":"a"},{"id":0,"name":"b","version":0},{"id":null,"name":"c"}]`),
		[]Fault{
			{"$.channels[0].id", isRequired},
			{"$.channels[2].id", isRequired},
			{"$.versions[0].id", isRequired},
			{"$.versions[2].id", wantWhole},
		},
	},
	{
		"rows after one that is none",
		inApp(`"channels":[7,{"id":1,"name":"a","version":9},{"id":1,"name":"b"}],"channel_devices":[{"device_id":"` + testDevice + `","channel_id":1}]`),
		[]Fault{
			{"$.channels[0]", wantObject},
			{"$.channels[2].id", "is the id of $.channels[1] already"},
			{"$.channels[1].version", "9 is not the id of a version"},
		},
	},
	{
		"two channels of one id", inApp(`"channels":[{"id":1,"name":"a"},{"id":1,"name":"b"}]`),
		[]Fault{{"$.channels[1].id", "is the id of $.channels[0] already"}},
	},
	{
		"two channels of one name", inApp(`"channels":[{"id":1,"name":"a"},{"id":2,"name":"b"},{"id":3,"name":"b"}]`),
		[]Fault{{"$.channels[2].name", "is the name of $.channels[1] already"}},
	},
	{
		"two overrides of one device, in other letters",
		inApp(`"channels":[{"id":1,"name":"a"}],"channel_devices":[{"device_id":"` + testDevice + `","channel_id":1},` +
			`{"device_id":"` + strings.ToUpper(testDevice) + `","channel_id":1}]`),
		[]Fault{{"$.channel_devices[1].device_id", "has an override already"}},
	},
}

func TestManifestFaults(t *testing.T) {
	for _, tt := range slices.Concat(manifestFaults, referenceFaults) {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, faultsOf(t, tt.doc)); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

// Documents that are no JSON: where the reader was, and why it could not go on. It was at the byte marked by «.
func TestManifestSyntax(t *testing.T) {
	valid := inChannel("")
	deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)
	tests := []struct {
		name, doc, path, reason string
	}{
		{"half a document", valid[:len(valid)-2] + "«", "$.channels", "unexpected EOF"},
		{"cut within a row", `{"app":{"app_id":"a.b"},"channels":[{"id":1«`, "$.channels[0]", "unexpected EOF"},
		{"cut literal", `{"app":nul«`, "$.app", "unexpected EOF"},
		{"broken literal", `{"app":nul«x}`, "$.app", "invalid character 'x'"},
		{"broken literal in a row", inVersion(`,"manifest":nul«x`), "$.versions[0].manifest", "invalid character 'x'"},
		{"no JSON", `«app: com.demo.app`, "$", "invalid character 'a'"},
		{"text after the document", valid + ` «x`, "$", "invalid character 'x'"},
		{"second document", valid + ` {«}`, "$", "more than one document"},
		{"stray bracket after the document", valid + `«]`, "$", "invalid character ']'"},
		{"comma before the end", `{"app":{"app_id":"com.demo.app"«,}}`, "$.app", "invalid character"},
		{"no value", `{"app":{"app_id":«}}`, "$.app.app_id", "invalid character"},
		{"name that is an array", `{"app":{«[[tru]]:1}}`, "$.app", "object member name must be a string"},
		{"name that is no text", `{"app":{«1:1}}`, "$.app", "object member name must be a string"},
		{"duplicate member", `{"app":{"app_id":"a.b",«"app_id":"a.b"}}`, "$.app.app_id", "duplicate object member name"},
		{"duplicate member of the document", inApp(`«"app":{}`), "$.app", "duplicate object member name"},
		{"duplicate member of another spelling", `{"app":{"app_id":"a.b",«"app\u005fid":"a.b"}}`, "$.app.app_id", "duplicate object member name"},
		{"duplicate unknown member", `{"app":{"app_id":"a.b","x":1,«"x":1}}`, "$.app.x", "duplicate object member name"},
		{"duplicate member deep in what is ignored", inApp(`"x":[[],{"y":{"z":1,«"z":2}}]`), "$.x[1].y.z", "duplicate object member name"},
		{"duplicate member in versions", inApp(`"versions":[{"id":1,"name":"a"},{"r2_path":"a",«"r2_path":"b"}]`), "$.versions[1].r2_path", "duplicate object member name"},
		{"duplicate member in a file", inFile(`,"file_size":1,«"file_size":1`), "$.versions[0].manifest[0].file_size", "duplicate object member name"},
		{"invalid UTF-8", "{\"app\":{\"app_id\":\"a.b«\xff\"}}", "$.app.app_id", "invalid UTF-8"},
		{"invalid UTF-8 in what is ignored", "{\"app\":{\"app_id\":\"a.b\",\"x\":\"«\xff\"}}", "$.app.x", "invalid UTF-8"},
		{"invalid UTF-8 in versions", inVersion(",\"link\":\"«\xff\""), "$.versions[0].link", "invalid UTF-8"},
		{"invalid UTF-8 in a file", inFile(",\"x\":\"«\xff\""), "$.versions[0].manifest[0].x", "invalid UTF-8"},
		{"half a surrogate pair", `{"app":{"app_id":"a.«\ud800"}}`, "$.app.app_id", "invalid surrogate pair"},
		{"byte order mark", "«\ufeff" + valid, "$", "invalid character"},
		{"NaN", inChannel(`,"rollout_percentage_bps":«NaN`), "$.channels[0].rollout_percentage_bps", "invalid character 'N'"},
		{"leading zero", inChannel(`,"rollout_percentage_bps":0«1`), "$.channels[0]", "invalid character '1'"},
		{"no comma in versions", inVersion(`,"r2_path":"a" «"checksum":"b"`), "$.versions[0]", "invalid character '\"' after object value"},
		{"object in place of a text", inVersion(`,"link":{"x":[tru«]}`), "$.versions[0].link.x[0]", "invalid character ']'"},
		{"object in place of a number", inChannel(`,"version":{"x":[tru«]}`), "$.channels[0].version.x[0]", "invalid character ']'"},
		{"control character in a text", "{\"app\":{\"app_id\":\"a«\nb\"}}", "$.app.app_id", `invalid character '\n'`},
		{"too deep", inApp(`"x":` + deep[:9_999] + "«" + deep[9_999:]), "$.x" + strings.Repeat("[0]", 9_999), "exceeded max depth"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before, after, _ := strings.Cut(tt.doc, "«")
			got := faultsOf(t, before+after)
			if len(got) != 1 {
				t.Fatalf("one mistake gives %d faults: %.500v", len(got), got)
			}
			if got[0].Path != tt.path {
				t.Errorf("path %.200s, want %.200s", got[0].Path, tt.path)
			}
			if want := fmt.Sprintf("is not valid JSON at byte %d: ", len(before)); !strings.HasPrefix(got[0].Message, want) || !strings.Contains(got[0].Message, tt.reason) {
				t.Errorf("message %q, want %s...%s", got[0].Message, want, tt.reason)
			}
		})
	}
}

func TestEmptyManifest(t *testing.T) {
	for _, doc := range []string{"", " \r\n\t"} {
		if diff := cmp.Diff([]Fault{{"$", "is empty"}}, faultsOf(t, doc)); diff != "" {
			t.Errorf("%q: faults (-want +got):\n%s", doc, diff)
		}
	}
}

// Where a document ends early, what was not read is not called missing.
func TestSyntaxErrorEndsTheFaults(t *testing.T) {
	got := faultsOf(t, `{"app":{},"channels":[{"id":1,"name":"a","version":5,"ios":1}],"channel_devices":[{"device_id":"`+testDevice+
		`","channel_id":8}],"versions":[{"r2_path":"/"},]}`)
	var paths []string
	for _, f := range got {
		paths = append(paths, f.Path)
	}
	if diff := cmp.Diff([]string{"$.app.app_id", "$.channels[0].ios", "$.versions"}, paths); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
}

// A place is told so that it cannot be mistaken: an index is none of a member's name.
func TestFaultPaths(t *testing.T) {
	tests := []struct{ name, doc, want string }{
		{"digits", `{"5":«`, `$["5"]`},
		{"negative", `{"-1":{"a":«`, `$["-1"].a`},
		{"index", `{"x":[[],[«`, "$.x[1][0]"},
		{"digits in an array", `{"x":[0,{"1":«`, `$.x[1]["1"]`},
		{"empty", `{"":«`, `$[""]`},
		{"dot", `{"a.b":«`, `$["a.b"]`},
		{"bracket and quote", `{"a]\"":«`, `$["a]\""]`},
		{"slash and tilde", `{"a/~":«`, `$["a/~"]`},
		{"letters", `{"$schema":{"_aZ9é":«`, `$["$schema"]._aZ9é`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := faultsOf(t, strings.Replace(tt.doc, "«", "}", 1))
			if len(got) != 1 || got[0].Path != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

// holding is what a member of a row holds.
type holding int

const (
	holdsText holding = iota
	holdsFlag
	holdsNumber
	holdsID // or a count
	holdsBps
	holdsRows
)

// manifestRow is a kind of row: a valid one, the document around it, and all members that the parser reads.
type manifestRow struct {
	path    string
	valid   object
	in      func(row object) object // the tables of that document; nil if the row is the document
	members map[string]holding
}

// around returns a document with the row in it.
func (r *manifestRow) around(row object) object {
	if r.in == nil {
		return row // it is the document
	}
	return object{"app": object{"app_id": testApp}}.with(r.in(row))
}

// document returns a document that is valid but for one member of one row, whose value is the given JSON text.
func (r *manifestRow) document(t testing.TB, member, value string) []byte {
	t.Helper()
	return toJSON(t, r.around(r.valid.with(object{member: json.RawMessage(value)})))
}

var manifestRows = []manifestRow{
	{
		"$",
		object{"app": object{"app_id": testApp}},
		nil,
		map[string]holding{"versions": holdsRows, "channels": holdsRows, "channel_devices": holdsRows},
	},
	{
		"$.app",
		object{"app_id": testApp},
		func(row object) object { return object{"app": row} },
		map[string]holding{"app_id": holdsText, "expose_metadata": holdsFlag},
	},
	{
		"$.versions[0]",
		object{"id": 1, "name": "1.1.0"},
		func(row object) object { return object{"versions": []any{row}} },
		map[string]holding{
			"id": holdsID, "name": holdsText, "deleted": holdsFlag, "external_url": holdsText, "r2_path": holdsText,
			"checksum": holdsText, "session_key": holdsText, "key_id": holdsText, "min_update_version": holdsText,
			"link": holdsText, "comment": holdsText, "manifest": holdsRows, "manifest_count": holdsID,
		},
	},
	{
		"$.versions[0].manifest[0]",
		object{"file_name": "a", "file_hash": "b", "s3_path": "c"},
		func(row object) object {
			return object{"versions": []any{object{"id": 1, "name": "1.1.0", "manifest": []any{row}}}}
		},
		map[string]holding{"file_name": holdsText, "file_hash": holdsText, "s3_path": holdsText, "file_size": holdsID},
	},
	{
		"$.channels[0]",
		object{"id": 1, "name": "production"},
		func(row object) object { return object{"channels": []any{row}} },
		map[string]holding{
			"id": holdsID, "name": holdsText, "version": holdsID, "public": holdsFlag, "ios": holdsFlag, "android": holdsFlag,
			"electron": holdsFlag, "disable_auto_update": holdsText, "disable_auto_update_under_native": holdsFlag,
			"allow_device_self_set": holdsFlag, "allow_emulator": holdsFlag, "allow_device": holdsFlag,
			"allow_dev": holdsFlag, "allow_prod": holdsFlag, "rollout_enabled": holdsFlag, "rollout_version": holdsID,
			"rollout_percentage_bps": holdsBps, "rollout_id": holdsText, "rollout_paused_at": holdsText,
			"auto_pause_enabled": holdsFlag, "auto_pause_window_minutes": holdsID, "auto_pause_failure_rate_bps": holdsBps,
			"auto_pause_confidence": holdsNumber, "auto_pause_min_attempts": holdsID, "auto_pause_min_failures": holdsID,
			"auto_pause_action": holdsText, "auto_pause_cooldown_minutes": holdsID,
		},
	},
	{
		"$.channel_devices[0]",
		object{"device_id": testDevice, "channel_id": 1},
		func(row object) object {
			return object{"channels": []any{object{"id": 1, "name": "production"}}, "channel_devices": []any{row}}
		},
		map[string]holding{"device_id": holdsText, "channel_id": holdsID},
	},
}

// wrongValues are values that a member must not have, and what is said of them.
var wrongValues = map[holding]map[string]string{
	holdsText: {`5`: wantText, `true`: wantText, `["x"]`: wantText, `{"x":"y"}`: wantText},
	holdsFlag: {`"true"`: wantBool, `1`: wantBool, `[]`: wantBool, `{}`: wantBool},
	holdsNumber: {
		`"1"`: "must be a number", `true`: "must be a number", `[1]`: "must be a number",
		`0`: betweenRange, `1`: betweenRange, `-0.5`: betweenRange, `1e400`: betweenRange, `1e-400`: betweenRange,
	},
	holdsID: {
		`"1"`: wantWhole, `true`: wantWhole, `[1]`: wantWhole, `{}`: wantWhole, `1.5`: wantWhole, `1e-1`: wantWhole,
		`-1`: idRange, `9007199254740992`: idRange, `99999999999999999999999`: idRange, `-99999999999999999999999`: idRange,
	},
	holdsBps:  {`"1"`: wantWhole, `false`: wantWhole, `[1]`: wantWhole, `1.5`: wantWhole, `-1`: bpsRange, `10001`: bpsRange, `99999999999999999999999`: bpsRange},
	holdsRows: {`{}`: wantArray, `"x"`: wantArray, `0`: wantArray, `false`: wantArray},
}

// Every known member of every row, with values of the wrong type and of the wrong range.
func TestManifestTypes(t *testing.T) {
	for _, row := range manifestRows {
		for member, kind := range row.members {
			for value, message := range wrongValues[kind] {
				t.Run(row.path+"."+member+"="+value, func(t *testing.T) {
					want := []Fault{{row.path + "." + member, message}}
					if diff := cmp.Diff(want, faultsOf(t, string(row.document(t, member, value)))); diff != "" {
						t.Errorf("faults (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
}

// One pass names every fault, and goes on after each.
func TestManifestNamesEveryFault(t *testing.T) {
	got := faultsOf(t, inApp(`"versions":[{"id":1,"name":"a","r2_path":"/"},{"id":true,"name":"b"}],
		"channels":[{"id":1,"name":"a","ios":1,"version":5},{"id":1,"name":"b","disable_auto_update":"x"}],
		"channel_devices":[{"device_id":"`+testDevice+`","channel_id":3}]`))
	want := []string{
		"$.channels[0].ios", "$.channels[1].disable_auto_update", "$.channels[1].id", "$.versions[0].r2_path",
		"$.versions[1].id", "$.channels[0].version", "$.channel_devices[0].channel_id",
	}
	var paths []string
	for _, f := range got {
		paths = append(paths, f.Path)
	}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
}

func TestManifestFaultsAreCounted(t *testing.T) {
	tests := []struct {
		rows, listed, more int
	}{
		{1, 1, 0}, {19, 19, 0}, {20, 20, 0}, {21, 20, 1}, {500, 20, 480},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.rows), func(t *testing.T) {
			row := `{"id":1,"name":"a","r2_path":"/"}`
			rows := make([]string, tt.rows)
			for i := range rows {
				rows[i] = strings.Replace(row, "1", fmt.Sprint(i), 1)
			}
			_, err := ParseManifest([]byte(inApp(`"versions":[` + strings.Join(rows, ",") + `]`)))
			var faults *Faults
			if !errors.As(err, &faults) {
				t.Fatalf("the error is %v", err)
			}
			if len(faults.List) != tt.listed || faults.More != tt.more {
				t.Errorf("%d listed and %d more, want %d and %d", len(faults.List), faults.More, tt.listed, tt.more)
			}
			text := err.Error()
			if !strings.HasPrefix(text, "channel manifest does not validate: $.versions[0].r2_path: must not start with /") {
				t.Errorf("text begins %.100q", text)
			}
			if got := strings.HasSuffix(text, fmt.Sprintf("; and %d more", tt.more)); got != (tt.more > 0) {
				t.Errorf("text ends %q", text[len(text)-30:])
			}
		})
	}
}

// A required member of the wrong type is one fault, beyond those that are listed too.
func TestWrongRequiredMembersAreCountedOnce(t *testing.T) {
	for _, table := range []string{
		`"versions":[%s]`, `"channels":[%s]`, `"versions":[{"id":1,"name":"a","manifest":[%s]}]`, `"channel_devices":[%s]`,
	} {
		row := `{"id":"1","name":5,"file_name":5,"file_hash":5,"s3_path":5,"device_id":5,"channel_id":-1},`
		wrong := map[bool]int{true: 3, false: 2}[strings.Contains(table, "manifest")] // members of the row that are read
		doc := fmt.Sprintf(inApp(table), strings.TrimSuffix(strings.Repeat(row, 100), ","))
		_, err := ParseManifest([]byte(doc))
		var faults *Faults
		if !errors.As(err, &faults) || len(faults.List)+faults.More != 100*wrong {
			t.Errorf("%s: %v, want %d faults", table, err, 100*wrong)
		}
	}
}

// wholeDocument has every table, with references in all directions.
var wholeDocument = []string{
	`"app":{"app_id":"com.demo.app","expose_metadata":true}`,
	`"versions":[
		{"id":1,"name":"1.1.0","r2_path":"orgs/o/apps/com.demo.app/1.1.0.zip","checksum":"` + testDigest + `","link":"l","comment":"c"},
		{"id":2,"name":"1.2.0","r2_path":"orgs/o/apps/com.demo.app/1.2.0.zip","checksum":"` + testDigest + `","manifest":[
			{"file_name":"a","file_hash":"` + testDigest + `","s3_path":"orgs/o/apps/com.demo.app/delta/a","file_size":7},
			{"file_name":"b","file_hash":"` + testDigest + `","s3_path":"orgs/o/apps/com.other.app/delta/b.br"}]},
		{"id":3,"name":"0.9.0","r2_path":"orgs/o/apps/com.demo.app/0.9.0.zip","manifest":[
			{"file_name":"c","file_hash":"` + testDigest + `","s3_path":"orgs/o/apps/com.demo.app/delta/c","file_size":9}]}]`,
	`"channels":[
		{"id":1,"name":"production","version":1,"public":true,"rollout_enabled":true,"rollout_version":2,"rollout_percentage_bps":5000},
		{"id":2,"name":"beta","version":2,"allow_device_self_set":true},
		{"id":3,"name":"native"}]`,
	`"channel_devices":[{"device_id":"` + testDevice + `","channel_id":2}]`,
}

func inOrder(parts []string, order ...int) []byte {
	var members []string
	for _, i := range order {
		members = append(members, parts[i])
	}
	return []byte("{" + strings.Join(members, ",") + "}")
}

func TestOrderOfMembersDoesNotMatter(t *testing.T) {
	want := mustParse(t, inOrder(wholeDocument, 0, 1, 2, 3))
	if len(want.channels) != 3 || len(want.overrides) != 1 || want.Keys.Len() != 6 || !want.rolloutActive {
		t.Fatalf("the document is not what the test needs: %+v", want)
	}
	for a := range 4 {
		for b := range 4 {
			for c := range 4 {
				d := 6 - a - b - c
				if a == b || a == c || b == c {
					continue
				}
				if got := mustParse(t, inOrder(wholeDocument, a, b, c, d)); !reflect.DeepEqual(got, want) {
					t.Errorf("order %d %d %d %d compiles to another manifest", a, b, c, d)
				}
			}
		}
	}
	// Within a row, the list of files may come before the name and the session key that it depends on.
	row := `{"app":{"app_id":"com.demo.app"},"versions":[{%s}],"channels":[{"id":1,"name":"a","version":1,"public":true}]}`
	members := []string{
		`"id":1`, `"name":"1.1.0"`, `"r2_path":"a.zip"`, `"checksum":"` + testDigest + `"`, `"session_key":"a:b"`,
		`"manifest":[{"s3_path":"k","file_hash":"` + testDigest + `","file_name":"a"}]`,
	}
	forwards := mustParse(t, fmt.Appendf(nil, row, strings.Join(members, ",")))
	slices.Reverse(members)
	if backwards := mustParse(t, fmt.Appendf(nil, row, strings.Join(members, ","))); !reflect.DeepEqual(forwards, backwards) {
		t.Error("a row backwards compiles to another manifest")
	}
}

func TestUnknownFieldsAreIgnored(t *testing.T) {
	whole := string(inOrder(wholeDocument, 0, 1, 2, 3))
	want := mustParse(t, []byte(whole))
	junk := `{"zz":{"id":"x","app":[1,{"versions":null}]},"owner_org":"3c5f","Version":"1","ID":null,"rollout_cache_ttl_seconds":60,"created_at":[],`
	got := mustParse(t, []byte(strings.ReplaceAll(whole, "{", junk)))
	if !reflect.DeepEqual(got, want) {
		t.Error("unknown fields change the manifest")
	}
	// Tables of the neutral manifest that this edge has no use for.
	tables := strings.TrimSuffix(whole, "}") + `,"channel_self_overrides":[5],"rollout_decisions":{},"counters":"x"}`
	if got := mustParse(t, []byte(tables)); !reflect.DeepEqual(got, want) {
		t.Error("unknown tables change the manifest")
	}
}

// Null stands for the default of every member that has one, as in the upstream's columns.
func TestNullMeansDefault(t *testing.T) {
	bare := `{"app":{"app_id":"com.demo.app"%s},
		"versions":[{"id":1,"name":"1.1.0"%s},{"id":2,"name":"1.0.0","manifest":[{"file_name":"a","file_hash":"b","s3_path":"c"%s}]}],
		"channels":[{"id":1,"name":"production"%s}]%s}`
	null := func(names string) string {
		var b strings.Builder
		for name := range strings.FieldsSeq(names) {
			b.WriteString(`,"` + name + `":null`)
		}
		return b.String()
	}
	want := mustParse(t, fmt.Appendf(nil, bare, "", "", "", "", ""))
	got := mustParse(t, fmt.Appendf(
		nil, bare, null("expose_metadata"),
		null("deleted external_url r2_path checksum session_key key_id min_update_version link comment manifest manifest_count"),
		null("file_size"),
		null(`version public ios android electron disable_auto_update disable_auto_update_under_native allow_device_self_set
			allow_emulator allow_device allow_dev allow_prod rollout_enabled rollout_version rollout_percentage_bps rollout_id
			rollout_paused_at rollout_cache_ttl_seconds auto_pause_enabled auto_pause_window_minutes auto_pause_failure_rate_bps
			auto_pause_confidence auto_pause_min_attempts auto_pause_min_failures auto_pause_action auto_pause_cooldown_minutes`),
		null("channel_devices"),
	))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("null is not the default:\n got %+v\nwant %+v", got.channels, want.channels)
	}
	ch := want.channels[0]
	if ch.public || ch.selfSettable || ch.policy != policyMajor || !ch.nativeFloor || ch.serves != [platforms]bool{true, true, true} ||
		!ch.allowEmulator || !ch.allowDevice || !ch.allowDev || !ch.allowProd || ch.stable != builtinBundle || ch.rollout.enabled {
		t.Errorf("a bare channel is %+v", ch)
	}
	if got := mustParse(t, []byte(inApp(`"versions":null,"channels":null,"channel_devices":null`))); len(got.channels) != 0 || got.Keys.Len() != 0 {
		t.Errorf("null tables give %+v", got)
	}
}

func TestManifestWarnings(t *testing.T) {
	const stored = `"r2_path":"a.zip","checksum":"c"`
	version := func(name, more string) string { return `"versions":[{"id":1,"name":"` + name + `",` + more + `}]` }
	tests := []struct {
		name, doc string
		want      []Fault
	}{
		{"nothing odd", inApp(version("1.0.0", stored) + `,"channels":[{"id":1,"name":"a","version":1,"public":true}]`), nil},
		{
			"name is no version", inApp(version("summer", stored) + `,"channels":[{"id":1,"name":"a","version":1}]`),
			[]Fault{{"$.channels[0]", `version name "summer" is not semver`}},
		},
		{
			"name of a target is no version",
			inApp(version("summer", stored) + `,"channels":[{"id":1,"name":"a"},{"id":2,"name":"b","rollout_version":1}]`),
			[]Fault{{"$.channels[1]", `version name "summer" is not semver`}},
		},
		{
			"name is no version, floor alone",
			inApp(version("summer", stored) + `,"channels":[{"id":1,"name":"a","version":1,"disable_auto_update":"none"}]`),
			[]Fault{{"$.channels[0]", `version name "summer" is not semver`}},
		},
		{
			"name is no version, nothing compares it",
			inApp(version("summer", stored) + `,"channels":[{"id":1,"name":"a","version":1,"disable_auto_update":"none","disable_auto_update_under_native":false}]`),
			nil,
		},
		{"reserved names", inApp(version("builtin", stored) + `,"channels":[{"id":1,"name":"a","version":1}]`), nil},
		{"name is no version, no channel", inApp(version("summer", stored)), nil},
		{
			"no checksum", inApp(version("1.0.0", `"r2_path":"a.zip"`) + `,"channels":[{"id":1,"name":"a","version":1}]`),
			[]Fault{{"$.versions[0].checksum", "is missing"}},
		},
		{
			"no checksum of an external bundle",
			inApp(version("1.0.0", `"external_url":"https://example.com/1.zip"`) + `,"channels":[{"id":1,"name":"a","version":1}]`),
			[]Fault{{"$.versions[0].checksum", "is missing"}},
		},
		{"no checksum, no channel", inApp(version("1.0.0", `"r2_path":"a.zip"`)), nil},
		{"no checksum, nothing stored", inApp(version("builtin", `"link":"x"`) + `,"channels":[{"id":1,"name":"a","version":1}]`), nil},
		{
			"override that is no UUID", inDevice(`"device_id":"my-phone","channel_id":1`),
			[]Fault{{"$.channel_devices[0].device_id", "is not a UUID"}},
		},
		{
			"two public channels of one platform",
			inApp(`"channels":[{"id":1,"name":"b","public":true,"ios":false},{"id":2,"name":"a","public":true,"electron":false}]`),
			[]Fault{{"$.channels", `"b" and "a" are both public for android; the first by name serves`}},
		},
		{
			"two public channels of different platforms",
			inApp(`"channels":[{"id":1,"name":"b","public":true,"ios":false,"electron":false},{"id":2,"name":"a","public":true,"android":false}]`), nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := mustParse(t, []byte(tt.doc)).Warnings
			if len(got) != len(tt.want) {
				t.Fatalf("warnings %v, want %v", got, tt.want)
			}
			for i, want := range tt.want {
				if got[i].Path != want.Path || !strings.Contains(got[i].Message, want.Message) {
					t.Errorf("got %v, want %v", got[i], want)
				}
			}
		})
	}
	t.Run("at most maxFaults", func(t *testing.T) {
		row := `{"device_id":"my-phone","channel_id":1},`
		m := mustParse(t, []byte(inApp(`"channels":[{"id":1,"name":"a"}],"channel_devices":[`+strings.TrimSuffix(strings.Repeat(row, 50), ",")+`]`)))
		if len(m.Warnings) != maxFaults {
			t.Errorf("%d warnings, want %d", len(m.Warnings), maxFaults)
		}
	})
}

// Lists of versions in no channel cost no memory beyond their keys, yet are judged and served.
func TestFilesOfUnusedVersions(t *testing.T) {
	const rows = 200
	list := func(app string) string {
		var b strings.Builder
		for i := range rows {
			fmt.Fprintf(&b, `{"file_name":"f%d","file_hash":"%064x","s3_path":"orgs/o/apps/%s/delta/%d","file_size":%d},`, i, i+1, app, i, i+1)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	doc := func(channelVersion int) []byte {
		return fmt.Appendf(nil, `{"app":{"app_id":"com.demo.app"},"versions":[
			{"id":1,"name":"1.0.0","checksum":"c","manifest":[%s]},{"id":2,"name":"1.1.0","checksum":"c","r2_path":"a.zip"}],
			"channels":[{"id":1,"name":"production","public":true,"version":%d}]}`, list("com.demo.app"), channelVersion)
	}
	used, unused := mustParse(t, doc(1)), mustParse(t, doc(2))
	if got, want := unused.Keys.Len(), rows+1; got != want {
		t.Errorf("%d keys, want %d", got, want)
	}
	if !reflect.DeepEqual(used.Keys, unused.Keys) {
		t.Error("the keys depend on what is in use")
	}
	for i := range rows {
		o, ok := unused.Keys.Find(fmt.Sprintf("orgs/o/apps/com.demo.app/delta/%d", i))
		if !ok || o.Covers != DigestStored || o.Size != int64(i+1) {
			t.Fatalf("key %d: %+v, %t", i, o, ok)
		}
	}
	if compiled := used.MemorySize() - unused.MemorySize(); compiled < rows*100 {
		t.Errorf("a list that is not compiled saves %d bytes only", compiled)
	}
	for i := range unused.channels {
		if b := unused.channels[i].stable; b.ID != 2 || !b.files.empty() {
			t.Errorf("bundle %+v is compiled", b)
		}
	}
	bad := strings.Replace(string(doc(2)), "delta/7\"", "delta//7\"", 1)
	want := []Fault{{"$.versions[0].manifest[7].s3_path", "must not start with / or contain //"}}
	if diff := cmp.Diff(want, faultsOf(t, bad)); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

// Contract section 3, "Addresses", and how the edge finds the key again.
func TestAddresses(t *testing.T) {
	const mine = "orgs/o/apps/com.demo.app/"
	tests := []struct {
		name, key, checksum string
		want                string // after FilesPath
	}{
		{"plain", mine + "1.zip", "abc", mine + "1.zip?key=abc"},
		{"empty checksum", mine + "1.zip", "", mine + "1.zip?key="},
		{"space", mine + "a b.zip", "c", mine + "a%20b.zip?key=c"},
		{"é", mine + "é.zip", "c", mine + "%C3%A9.zip?key=c"},
		{"per cent", mine + "100%.zip", "c", mine + "100%25.zip?key=c"},
		{"per cent and one digit", mine + "%2", "c", mine + "%252?key=c"},
		{"question mark", mine + "a?b.zip", "c", mine + "a%3Fb.zip?key=c"},
		{"hash", mine + "a#b.zip", "c", mine + "a%23b.zip?key=c"},
		{"plus", mine + "a+b.zip", "c", mine + "a+b.zip?key=c"},
		{"quote", mine + `a"b.zip`, "c", mine + "a%22b.zip?key=c"},
		{"newline", mine + "a\nb.zip", "c", mine + "a%0Ab.zip?key=c"},
		{"what a path may hold", mine + "-._~!$&'()*,;=:@", "c", mine + "-._~!$&'()*,;=:@?key=c"},
		{"escapes of the upload tool stay", mine + "delta/x_a%20b%2Bc.js", "c", mine + "delta/x_a%20b%2Bc.js?key=c"},
		{"small hexadecimal digits stay", mine + "a%c3%a9.zip", "c", mine + "a%c3%a9.zip?key=c"},
		{"all hexadecimal digits stay", mine + "%09%af%AF%f0", "c", mine + "%09%af%AF%f0?key=c"},
		{"no hexadecimal digit first", mine + "%g0", "c", mine + "%25g0?key=c"},
		{"no hexadecimal digit second", mine + "%0g", "c", mine + "%250g?key=c"},
		{"letters and digits, escaped in full", mine + "azAZ09 ", "c", mine + "azAZ09%20?key=c"},
		{"an escape and a space", mine + "a%20b c.zip", "c", mine + "a%2520b%20c.zip?key=c"},
		{"an escape and a per cent", mine + "a%20b%.zip", "c", mine + "a%2520b%25.zip?key=c"},
		{"an escaped slash stays", mine + "a%2Fb.zip", "c", mine + "a%2Fb.zip?key=c"},
		{"checksum of an encrypted bundle", mine + "1.zip", "a+b/c=&d", mine + "1.zip?key=a%2Bb%2Fc%3D%26d"},
		{"another app's key", "orgs/o/apps/com.other.app/1.zip", "c", "orgs/o/apps/com.other.app/1.zip?key=c&app_id=com.demo.app"},
		{"a key without an app", "1.zip", "c", "1.zip?key=c&app_id=com.demo.app"},
		{"an app in other letters", "orgs/o/apps/com.demo.App/1.zip", "c", "orgs/o/apps/com.demo.App/1.zip?key=c&app_id=com.demo.app"},
		{"the first /apps/ counts", "orgs/apps/com.other.app/apps/com.demo.app/1.zip", "c", "orgs/apps/com.other.app/apps/com.demo.app/1.zip?key=c&app_id=com.demo.app"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// A zip and a delta file of one key differ in the query alone.
			file := object{"file_name": "f", "file_hash": "h", "s3_path": tt.key}
			s := scene{version: object{"r2_path": tt.key, "checksum": tt.checksum, "manifest": []any{file}}}
			d := s.decide(t)
			got := members(t, AppendResponse(nil, &d, testBase))
			if want := testBase + FilesPath + tt.want; got["url"] != want {
				t.Errorf("url  %v\nwant %s", got["url"], want)
			}
			path, query, _ := strings.Cut(tt.want, "?")
			if _, app, found := strings.Cut(query, "&"); found {
				query = "key=1&" + app
			} else {
				query = "key=1"
			}
			entry := got["manifest"].([]any)[0].(map[string]any)
			if want := testBase + FilesPath + path + "?" + query; entry["download_url"] != want {
				t.Errorf("download_url %v\nwant         %s", entry["download_url"], want)
			}
			if !slices.Contains(KeysOfPath(path), tt.key) {
				t.Errorf("the address leads to %q, not to the key", KeysOfPath(path))
			}
		})
	}
}

// An application id is no path, so it is escaped where an address names it.
func TestAddressOfAnOddApp(t *testing.T) {
	s := scene{app: object{"app_id": "com.demo&x=1 é"}}
	d := s.decide(t)
	got := members(t, AppendResponse(nil, &d, testBase))["url"].(string)
	if want := "&app_id=com.demo%26x%3D1+%C3%A9"; !strings.HasSuffix(got, want) {
		t.Errorf("url %s, want it to end in %s", got, want)
	}
}

func TestLegacyFileName(t *testing.T) {
	tests := []struct {
		name, file, key, want string
	}{
		{"plain", "index.html", "d/x_index.html", "index.html"},
		{"escaped, and so is the key", "img/a%20b%2Bc.png", "d/x_img/a%20b%2Bc.png", "img/a b+c.png"},
		{"é", "%C3%A9.js", "d/x_%C3%A9.js", "é.js"},
		{"escaped slash", "a%2Fb.js", "d/x_a%2Fb.js", "a/b.js"},
		{"plus stays", "a+b%20c.js", "d/x_a+b%20c.js", "a+b c.js"},
		{"name decoded, key escaped", "a b.js", "d/x_a%20b.js", "a b.js"},
		{"per cent in a new name", "100%25.txt", "d/x_other.txt", "100%25.txt"},
		{"the key ends in the name without _", "a%20b.js", "d/a%20b.js", "a%20b.js"},
		{"the key ends in more", "a%20b.js", "d/x_a%20b.js.br", "a%20b.js"},
		{"no escape after the per cent", "100%.txt", "d/x_100%.txt", "100%.txt"},
		{"half an escape", "100%2", "d/x_100%2", "100%2"},
		{"escapes that are no UTF-8", "a%FFb.js", "d/x_a%FFb.js", "a%FFb.js"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(legacyFileName([]byte(tt.file), []byte(tt.key))); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What an answer says of a file, to the last byte, with names that need escaping in JSON.
func TestFileList(t *testing.T) {
	s := scene{version: object{"id": 1, "manifest": []any{
		object{"file_name": `a"b.js`, "file_hash": "h\\1", "s3_path": "orgs/o/apps/com.demo.app/delta/1"},
		object{"file_name": "é/<&>\u2028.js", "file_hash": "h2", "s3_path": "orgs/o/apps/com.demo.app/delta/2"},
	}}}
	d := s.decide(t)
	got := members(t, AppendResponse(nil, &d, testBase))["manifest"]
	want := []any{
		map[string]any{"file_name": `a"b.js`, "file_hash": `h\1`, "download_url": testBase + FilesPath + "orgs/o/apps/com.demo.app/delta/1?key=1"},
		map[string]any{"file_name": "é/<&>\u2028.js", "file_hash": "h2", "download_url": testBase + FilesPath + "orgs/o/apps/com.demo.app/delta/2?key=1"},
	}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
}

// The estimate steers a cache budget: it must grow with what the document makes the edge keep.
func TestMemorySize(t *testing.T) {
	base := mustParse(t, appOf(3, 10, 0)).MemorySize()
	if base <= 0 {
		t.Fatalf("%d bytes", base)
	}
	// A version that no channel points at costs its mark and its name, also without any key.
	rows := func(n int) []byte {
		var versions []any
		for i := range n {
			versions = append(versions, object{"id": i, "name": "1.0.0"})
		}
		return toJSON(t, object{"app": object{"app_id": testApp}, "versions": versions})
	}
	if got := mustParse(t, rows(1000)).MemorySize() - mustParse(t, rows(0)).MemorySize(); got != 24_000 {
		t.Errorf("1000 versions without keys count %d bytes, want 24 each", got)
	}
	for name, doc := range map[string][]byte{
		"channels": appOf(300, 10, 0), "versions": appOf(3, 1000, 0), "overrides": appOf(3, 10, 1000),
	} {
		if got := mustParse(t, doc).MemorySize(); got <= base {
			t.Errorf("more %s: %d bytes, not above %d", name, got, base)
		}
	}

	// Channels that share a bundle share its memory.
	files := make([]any, 100)
	for i := range files {
		files[i] = object{"file_name": fmt.Sprint(i), "file_hash": "h", "s3_path": fmt.Sprint("k/", i)}
	}
	one := scene{version: object{"manifest": files}}
	two := scene{version: object{"manifest": files}, channels: []any{object{"id": 2, "name": "beta", "version": 1, "rollout_version": 1}}}
	if a, b := mustParse(t, one.document(t)).MemorySize(), mustParse(t, two.document(t)).MemorySize(); b-a > 2000 {
		t.Errorf("a second channel for a bundle costs %d bytes", b-a)
	}
}
