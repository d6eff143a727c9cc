"""The web UI. Room kept by the design; `swift web-ui` says that it is not built yet."""
