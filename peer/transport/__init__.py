"""Moving bytes between peers: links, exchanges, and the word of who is there. See README.md in this folder."""
