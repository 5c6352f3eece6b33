//! Everything beside the data path: lifetime, signals, resolvers, the API socket. Never on the packet path.
