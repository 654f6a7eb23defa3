"""Which requests suffer under compression: foretold before they are answered, and what routing them gains."""
