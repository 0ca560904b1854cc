package caddymodule

// The names of log fields, the same wherever they occur.
const (
	fieldAppID      = "app_id"
	fieldKey        = "bundle_key"
	fieldOrigin     = "origin"
	fieldError      = "error"
	fieldStorage    = "storage"
	fieldSuppressed = "suppressed"
	fieldWarnings   = "warnings"
)
