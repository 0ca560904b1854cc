package caddymodule

// The names of log fields, the same wherever they occur.
const (
	fieldAppID      = "app_id"
	fieldKey        = "bundle_key"
	fieldChannel    = "channel"
	fieldVersion    = "version"
	fieldOrigin     = "origin"
	fieldCollector  = "collector"
	fieldSpool      = "spool"
	fieldUpstream   = "upstream"
	fieldError      = "error"
	fieldStorage    = "storage"
	fieldSuppressed = "suppressed"
	fieldWarnings   = "warnings"
)
