//! Shared by the XDP program and the proxy.
#![no_std]
