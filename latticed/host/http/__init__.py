"""http.do: HTTP requests of plugins, through `host.egress`."""
