//! What spans several resources: a list of steps, each an action beside its undo.
//!
//! If a step fails, its own undo runs (it may have done half of its work) and then those of the steps before it,
//! newest first. Undos are idempotent. What a crash leaves between two steps is found by the reconciler, since
//! everything a step makes names what it was made for.
//!
//! Must never know: what the steps do.

use async_trait::async_trait;

use crate::error::Result;

/// One step over a context `C`, in which steps leave what later ones need.
#[async_trait]
pub trait Step<C: Send>: Send + Sync {
    /// A short name, for logs.
    fn name(&self) -> &'static str;

    /// Does it.
    async fn act(&self, context: &mut C) -> Result<()>;

    /// Takes it back, whether it was done in whole, in part, or not at all.
    async fn undo(&self, context: &mut C) -> Result<()>;
}

/// Runs all steps, or none.
///
/// # Errors
/// What the failing step said. A failing undo is logged; the other undos still run.
pub async fn run<C: Send>(steps: &[&dyn Step<C>], context: &mut C) -> Result<()> {
    for (index, step) in steps.iter().enumerate() {
        let Err(error) = step.act(context).await else { continue };
        for undone in steps[..=index].iter().rev() {
            if let Err(undo_error) = undone.undo(context).await {
                tracing::error!(
                    step = undone.name(),
                    error = &undo_error as &dyn std::error::Error,
                    "a step could not be undone; the reconciler will find what it left"
                );
            }
        }
        return Err(error);
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;

    /// Wraps a step so that it fails, before or after having done its work.
    pub(crate) struct Failing<'a, C> {
        /// The step.
        pub(crate) step: &'a dyn Step<C>,
        /// Whether it does its work first.
        pub(crate) after_acting: bool,
    }

    #[async_trait]
    impl<C: Send> Step<C> for Failing<'_, C> {
        fn name(&self) -> &'static str {
            self.step.name()
        }

        async fn act(&self, context: &mut C) -> Result<()> {
            if self.after_acting {
                self.step.act(context).await?;
            }
            Err(crate::error::Error::Unavailable("made to fail".to_owned()))
        }

        async fn undo(&self, context: &mut C) -> Result<()> {
            self.step.undo(context).await
        }
    }

    /// Runs `steps` once for each step and each half of it, failing there, on a fresh context each time; `check` sees
    /// what is left.
    pub(crate) async fn fail_at_each<C: Send>(
        steps: &[&dyn Step<C>],
        mut fresh: impl FnMut() -> C,
        mut check: impl FnMut(&str, &C),
    ) {
        for failing_at in 0..steps.len() {
            for after_acting in [false, true] {
                let failing = Failing { step: steps[failing_at], after_acting };
                let mut broken = steps.to_vec();
                broken[failing_at] = &failing;
                let mut context = fresh();
                assert!(run(&broken, &mut context).await.is_err());
                check(steps[failing_at].name(), &context);
            }
        }
    }

    struct Take(&'static str);

    #[async_trait]
    impl Step<Vec<&'static str>> for Take {
        fn name(&self) -> &'static str {
            self.0
        }

        async fn act(&self, context: &mut Vec<&'static str>) -> Result<()> {
            context.push(self.0);
            Ok(())
        }

        async fn undo(&self, context: &mut Vec<&'static str>) -> Result<()> {
            context.retain(|taken| *taken != self.0);
            Ok(())
        }
    }

    #[tokio::test]
    async fn failing_at_any_step_leaves_nothing() {
        let (a, b, c) = (Take("a"), Take("b"), Take("c"));
        fail_at_each(&[&a, &b, &c], Vec::new, |step, left| assert!(left.is_empty(), "{step} left {left:?}"))
            .await;
    }

    #[tokio::test]
    async fn steps_run_in_order() {
        let (a, b) = (Take("a"), Take("b"));
        let mut context = Vec::new();
        run(&[&a as &dyn Step<_>, &b], &mut context).await.unwrap();
        assert_eq!(context, ["a", "b"]);
    }
}
