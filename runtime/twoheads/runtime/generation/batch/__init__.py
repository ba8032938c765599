"""Many sequences that grow at once: their places in shared arrays, a step of all, and requests that come and go."""
