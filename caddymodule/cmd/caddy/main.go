// Command caddy is Caddy with its standard modules and capgo-edge.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/capgo-edge/capgo-edge/caddymodule"
)

func main() { caddycmd.Main() }
