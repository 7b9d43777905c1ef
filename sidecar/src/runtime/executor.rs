//! The tokio runtime of every command.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use tokio::runtime::Builder;

/// Runs `main` on a runtime of one thread, with IO and time. Blocks.
///
/// Threads that look up host names are not waited for: they must not delay the exit.
///
/// # Errors
///
/// When the runtime cannot be built, for example because no descriptors are left. A panic of `main` is the inner
/// error.
pub(crate) fn block_on<T>(main: impl Future<Output = T>) -> io::Result<thread::Result<T>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(main)));
    runtime.shutdown_background();
    Ok(outcome)
}
