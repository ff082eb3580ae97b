"""Speed against peers, measured interleaved in one run; each file opens with its question."""
