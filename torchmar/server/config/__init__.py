"""The server's configuration: keys, values and settings of config.properties."""
