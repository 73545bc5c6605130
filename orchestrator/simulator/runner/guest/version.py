"""The version of GitHub's runner whose behaviour this one has."""

VERSION = "2.336.0"
