"""One run on one node: its workers started, watched and ended, and the record that it always leaves. Without torch."""
