//! What holds for every wanted network and every state a host may be in.
