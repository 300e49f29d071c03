"""Tests of the app. A package, so that test files can share helpers with relative imports."""
