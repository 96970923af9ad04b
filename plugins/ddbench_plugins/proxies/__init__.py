"""Built-in proxies: networks that others have trained."""
