"""Who is who: identity and TLS keys, certificates, and the roster that the consortium's root signs.

- `keys`, `passphrase`: Ed25519 and P-256, and a key under a passphrase; `pkcs11_keys`: keys that stay in a token
- `signed`: a document with one signature
- `roster`: who is a member, with which keys; `certificates`: X.509 of the consortium's own authority
- `consortium`: the offline root; `enrolment`, `invitation`, `kit`: how a member comes in
- `member`: a member's own state folder; `expiry`: what of its papers ends soon
- `submission`: what an administrator signs when a run is submitted, stopped, or ended
"""
