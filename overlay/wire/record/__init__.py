"""The record layer: one AEAD box over frames, cut into the fragments that a path's datagrams hold. Sans-I/O."""
