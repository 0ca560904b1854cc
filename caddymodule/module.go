// Package caddymodule is capgo-edge as a module of Caddy: an edge for Capgo-style live updates of Capacitor apps.
//
// It holds the glue between the three rooms that know no Caddy (resolver decides, cache keeps, origin reads), the
// configuration, and the HTTP endpoints. The module names are the app "capgo_edge", with what all sites share, the handler
// "http.handlers.capgo_edge", one per site, and the origins "capgo_edge.origins.*".
package caddymodule

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(App{})
	caddy.RegisterModule(Handler{})
	caddy.RegisterModule(FileOrigin{})
	caddy.RegisterModule(HTTPOrigin{})
	caddy.RegisterModule(S3Origin{})
	caddy.RegisterModule(Admin{})
	httpcaddyfile.RegisterGlobalOption(moduleName, parseApp)
	httpcaddyfile.RegisterHandlerDirective(moduleName, parseHandler)
	// Before respond, so that a site may end in "respond 404"; it comes before reverse_proxy and file_server too. What
	// guards a site (abort, error, basic_auth) still comes first.
	httpcaddyfile.RegisterDirectiveOrder(moduleName, httpcaddyfile.Before, "respond")
}

// moduleName is the name of the app, the directive and the global option.
const moduleName = "capgo_edge"

var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)

	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)

	_ caddy.AdminRouter = (*Admin)(nil)

	_ Origin                = (*FileOrigin)(nil)
	_ caddyfile.Unmarshaler = (*FileOrigin)(nil)
	_ Origin                = (*HTTPOrigin)(nil)
	_ caddyfile.Unmarshaler = (*HTTPOrigin)(nil)
	_ Origin                = (*S3Origin)(nil)
	_ caddyfile.Unmarshaler = (*S3Origin)(nil)
)
