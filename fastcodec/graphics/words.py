"""Words, code and shell output that the pictures of text are filled with.

In a template {w} stands for an identifier, {f} for a file, {n} for a number, {h} for eight hexadecimals and {p} for a
path.
"""

import re

_PROSE = """
the of and to in is that for it as was with be by on not this are or from at which have an they you were her all there
when who will more no if out so what up said about than into them can only other time new some could these two may then
do first any my now such like our over man even most made after also did many before must through image colour frame
signal measure value window network table result system light number report version page file folder search settings
account share message update history privacy support language 2024 17 3.5 1,200 I A We It's — don't quickly, however,
(see Figure 3) therefore; again: end. done. yes! why? "quoted" e.g. [12] 50% $9.99 #4 & @home 20°C ±2 x² © naïve café
Größe señor œuvre Ångström façade λόγος мир дом Übung
"""
_NAMES = """
index value buffer width height result image codec stream path count offset table state update config main parse
read_file write_all n i x _key max_size node left right total weights batch_size Encoder Decoder TreeNode
"""
WORDS = tuple(_PROSE.split())
IDENTIFIERS = tuple(_NAMES.split())

_PYTHON = '''import {w}, {w}
from {w}.{w} import {w} as {w}


class {w}({w}):
    def __init__(self, {w}: int = {n}):
        self.{w} = {w}  # {w} of the {w}
        super().__init__()

    def {w}(self, {w}, *{w}):
        """Return the {w} of each {w}."""
        for {w} in range({n}):
            if {w} >= {n}:
                raise ValueError(f"{w}: no {w}")
            {w} = {w}[{w} + {n}] * 0x{h}
        return {w}.{w}({w}, {w}={n})
'''
_C = """#include "{w}.h"
#include <stdio.h>

/* {w} of {w}, {n} bytes */
static int {w}(const char *{w}, int {w}) {
    uint32_t {w} = 0x{h}u;
    while ({w} < {n} && {w} != NULL) {
        {w}[{w}++] ^= {w} >> {n};
        printf("%d {w}\\n", {w});  // {w}
    }
    return {w};
}

#define {w} {n}
struct {w} {
    float {w}[{n}];
    struct {w} *{w};
};
"""
_JSON = """{
  "{w}": {
    "{w}": [{n}, {n}, {n}],
    "{w}": "{p}",
    "{w}": true
  },
  "{w}": "{h}",
  "{w}": null
}
"""
_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
  <title>{w} {w}</title>
  <link rel="{w}" href="{p}.css">
</head>
<body>
  <div class="{w}" id="{w}">
    <p>{w} {w} <b>{w}</b> {w} &amp; {w}</p>
    <img src="{f}" width="{n}">
  </div>
</body>
</html>
"""
CODE = (_PYTHON, _PYTHON, _C, _JSON, _HTML)

SHELL = (
    "user@host:{p}$ ls -l\ntotal {n}\n",
    "-rw-r--r-- 1 user user  {n} Jan 12 10:47 {f}\n" * 3,
    "drwxr-xr-x 2 user user 4096 Mar  3 09:15 {w}\n" * 2 + "$ cd {p}\n",
    "$ make -j8\n" + "[{n}/1200] Building CXX object {p}.cpp.o\n" * 4,
    "{f}:{n}:17: warning: unused variable '{w}'\n{f}:{n}:4: error: no member named '{w}' in '{w}'\n"
    "    return {w}->{w}({w}, {n});\n           ^~~~~~~~\nmake: *** error 2\n",
    "$ git log --stat\ncommit {h}{h}{h}\nAuthor: {w} <{w}@example.org>\n\n    {w} the {w} of {w}\n\n",
    " {p} | {n} ++++++----\n {f} | {n} +++\n 2 files changed, {n} insertions(+), {n} deletions(-)\n\n",
    "$ hexdump -C {f}\n" + "00{h}  {h} {h} {h} {h}  |.{w}..|\n" * 6,
    "  PID USER   PR  NI   VIRT  %CPU  COMMAND\n" + " {n} root   20   0 {n}  12.{n}  {p}\n" * 6,
    'Traceback (most recent call last):\n  File "{p}.py", line {n}, in {w}\n    {w} = {w}({w}, {n})\n'
    "ValueError: {w} is not a {w}\n",
    "$ python train.py --batch {n}\n" + "step {n}  loss 0.{n}  {n} images/s\n" * 4,
    "[##########........] 56% ETA 00:17\n\n",
    "$ ping example.org\n" + "64 bytes from 192.0.2.7: icmp_seq={n} ttl=56 time=11.{n} ms\n" * 4,
)

STYLES = ("comment", "string", "number", "name", "keyword", "mark")  # the groups of TOKENS
TOKENS = re.compile(
    r"(?P<comment>#.*|//.*|/\*.*\*/|\"\"\".*\"\"\")|(?P<string>\"[^\"]*\"|'[^']*')|(?P<number>\b\d[\w.,:%]*)|"
    r"(?P<name>\w+(?=\(|\"=))|(?P<keyword>\b(?:def|class|return|for|in|if|while|import|from|as|raise|static|const|int|"
    r"char|struct|float|true|null|error|warning|commit|step|user@host|self|div|html|body|total|root)\b)|"
    r"(?P<mark>[-+<>=*^&$|~/.]+)"
)
