"""Side-by-side measurements of the suite and a peer on one machine; see README.md."""
