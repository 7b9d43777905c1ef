//! Heap memory that is not needed any more.

/// Returns free heap pages to the system (`malloc_trim`). For the end of the start, and of a burst of requests.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn release_startup_pages() {
    // SAFETY: takes no pointer, and frees only memory that is not in use.
    #[expect(unsafe_code, reason = "a function of the C library")]
    let _released = unsafe { libc::malloc_trim(0) };
}

/// Allocators other than glibc's return pages by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn release_startup_pages() {}
