//! Memory that a tunnel needs only to start.

/// Lets go of the program's code and of the heap that nothing uses any more, to be called once the tunnel is
/// ready. Two thirds of the code that a process has touched by then serve its start; what is used again comes
/// back by itself, a page at a time, mostly from the page cache.
#[cfg(target_os = "linux")]
pub fn shrink() {
    let begin = (&raw const __executable_start).addr().next_multiple_of(PAGE);
    let end = (&raw const etext).addr() & !(PAGE - 1);
    let Some(length) = end.checked_sub(begin) else { return };
    // There may be holes between the parts, of which the kernel complains when it has done the rest.
    let _complaint = drop_pages(begin, length);
    trim();
}

#[cfg(target_os = "linux")]
fn drop_pages(begin: usize, length: usize) -> rustix::io::Result<()> {
    use rustix::mm::{Advice, madvise};

    // SAFETY: from the program's first byte to the end of its code all is mapped from its file and read-only:
    // what the dynamic linker or the program itself writes to lies behind. Dropped pages are read from the
    // file again, which an executable that runs keeps from being written to.
    #[expect(unsafe_code, reason = "pages of no object of the language")]
    unsafe {
        madvise(std::ptr::without_provenance_mut(begin), length, Advice::LinuxDontNeed)
    }
}

/// Elsewhere nobody has measured what it brings.
#[cfg(not(target_os = "linux"))]
pub fn shrink() {}

/// Gives pages back that the allocator keeps for later; other allocators than glibc's do so by themselves.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: it takes no pointer, and touches nothing that is in use.
    #[expect(unsafe_code, reason = "a function of the C library")]
    let _trimmed = unsafe { libc::malloc_trim(0) };
}

#[cfg(all(target_os = "linux", not(target_env = "gnu")))]
fn trim() {}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "symbols that every linker defines; only their addresses are taken")]
unsafe extern "C" {
    /// The first byte of the program in memory.
    static __executable_start: u8;
    /// The first behind its code.
    static etext: u8;
}

/// The largest size of a page that is in use, 64 KiB on some arm64: whole pages of a smaller size, too.
#[cfg(target_os = "linux")]
const PAGE: usize = 64 * 1024;
