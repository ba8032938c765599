"""The zoo: small random models of every family and maker, what coverage is measured on."""
