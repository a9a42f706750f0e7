"""Embedded pictures and data; LICENSES.md names their authors and licences."""
