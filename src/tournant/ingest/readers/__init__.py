"""Readers: a file's bytes in, a `Document` out.

`opening` gets the bytes safely, `sniffing` says what they are, `registry` chooses the reader, and there is
one module per kind of file. Parsing is pure computation: it belongs on processes, and PDF may run nowhere else.
"""
