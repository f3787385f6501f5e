"""Every trap that real stores set, on real stores."""
