//! Who waits for what, between a loop around a state machine and the handles that share it.

use std::task::{Context, Waker};

/// Any number of waiters for the same thing, each once.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Vec<Waker>);

impl Waiters {
    /// Remembers the task of `context`; a task that polls again is not remembered twice.
    pub(crate) fn register(&mut self, context: &Context<'_>) {
        if !self.0.iter().any(|waker| waker.will_wake(context.waker())) {
            self.0.push(context.waker().clone());
        }
    }

    /// Wakes and forgets them all.
    pub(crate) fn wake(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

/// One waiter: a later one takes the place of an earlier.
#[derive(Debug, Default)]
pub(crate) struct Waiter(Option<Waker>);

impl Waiter {
    /// Remembers the task of `context`.
    pub(crate) fn register(&mut self, context: &Context<'_>) {
        match &mut self.0 {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
    }

    /// Wakes and forgets it.
    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_task_that_polls_again_and_again_is_remembered_once() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let context = Context::from_waker(&waker);
        let (mut waiters, mut waiter) = (Waiters::default(), Waiter::default());
        for _ in 0..1000 {
            waiters.register(&context);
            waiter.register(&context);
        }
        assert_eq!(waiters.0.len(), 1);
        waiters.wake();
        waiter.wake();
        waiters.wake();
        waiter.wake();
        assert_eq!(count.0.load(Relaxed), 2);
    }
}
