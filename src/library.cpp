// libdeepscale.so holds the static parts whole; this file gives the library an object of its own.
