//! What the tasks that fetch by what the world says wait for between their rounds.
use tokio::sync::watch;
use tokio::time::Instant;

use crate::push::Published;

/// Waits until `next`, or until there is a new world; without `next` for a new world alone. `None`: there will be none.
pub(crate) async fn due(
    next: Option<impl Into<Instant>>,
    published: &mut watch::Receiver<Published>,
) -> Option<()> {
    let changed = published.changed();
    match next {
        Some(next) => tokio::time::timeout_at(next.into(), changed).await.unwrap_or(Ok(())),
        None => changed.await,
    }
    .ok()
}
