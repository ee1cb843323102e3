"""Who is who: identity and TLS keys, certificates, and the roster that the consortium's root signs."""
