"""One file a method: what its paper claims, and the smallest honest check of it. See `tokenmill.claims.lab.Claim`."""
