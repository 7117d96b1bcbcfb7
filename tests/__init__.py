"""Tests: known answers, equivalence with a reference, injected faults, real tools."""
