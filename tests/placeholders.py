"""What clones and downloads leave under the name of a file: bytes, and what they must be called."""

PLACEHOLDERS = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n",
        "a Git LFS pointer, not the file; fetch it with git lfs pull",
    ),
    "annex": (b"/annex/objects/SHA256E-s5787--" + b"4d" * 32 + b".jpg\n", "a git-annex pointer, not the file"),
    "page": (b"\xef\xbb\xbf\r\n <!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page, not the file"),
    "xhtml": (b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"></html>', "an HTML page"),
    "denied": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "a server's error message"),
}
