"""``python -m tests.security.fuzz_hello [COUNT] [SEED]``: our reader against OpenSSL's server, over mutated and record-split hellos.

Whatever name we read, OpenSSL's server must read too (its ``sni_callback``), from the same bytes; we may refuse what it
takes, never read what it doesn't.  Prints what each came to; exit status 1, with the hello in hexadecimal, where the two
differ.
"""
