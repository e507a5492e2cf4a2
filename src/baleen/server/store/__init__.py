"""What outlives the process, beside `baleen.protocol.replay`: sampled tokens, responses by id."""
