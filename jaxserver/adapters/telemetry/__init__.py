"""Where finished requests are told of."""
