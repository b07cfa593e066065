//! The line to one VMM's control socket, on which its guest's questions come and answers go back.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use vmm::questions::{Message, Question};
use vmm::rpc::{Action, Reply};

use super::{Known, Nics, lock};

/// Questions of one instance that are being answered; further ones are lost, as on any network.
const ANSWERED_MAX: usize = 32;
/// The longest line of a VMM in bytes: a question is at most a kibibyte, in base64.
const LINE_BYTES_MAX: u64 = 8 << 10;
/// How soon a line that has ended is taken up again.
const AGAIN_MIN: Duration = Duration::from_millis(100);
/// How long that takes at most.
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// How a line came to its end.
enum Ended {
    /// The VMM knows of no questions: it is older.
    Refused(String),
    /// It was in use.
    Later,
}

/// Serves an instance until this is dropped, or its VMM refuses.
pub(super) async fn serve(instance: String, socket: PathBuf, nics: Nics, known: Arc<Known>) {
    let mut again = AGAIN_MIN;
    loop {
        let ended = match UnixStream::connect(&socket).await {
            Ok(stream) => talk(stream, &nics, &known).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(Ended::Refused(message)) => {
                tracing::info!(instance.id = instance, message, "its VMM has no resolver");
                return;
            }
            Ok(Ended::Later) => again = AGAIN_MIN,
            Err(error) => tracing::debug!(instance.id = instance, %error, "the line for names has ended"),
        }
        tokio::time::sleep(again).await;
        again = (2 * again).min(AGAIN_MAX);
    }
}

async fn talk(stream: UnixStream, nics: &Nics, known: &Arc<Known>) -> io::Result<Ended> {
    let (reader, mut writer) = stream.into_split();
    writer.write_all(&line(&Action::Resolve)).await?;
    let (answers, mut outgoing) = mpsc::channel::<Action>(ANSWERED_MAX);
    let mut work = JoinSet::new();
    work.spawn(async move {
        while let Some(answer) = outgoing.recv().await {
            if writer.write_all(&line(&answer)).await.is_err() {
                return;
            }
        }
    });
    let mut reader = BufReader::new(reader);
    let mut heard = Vec::new();
    loop {
        heard.clear();
        (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut heard).await?;
        if heard.pop() != Some(b'\n') {
            return Ok(Ended::Later);
        }
        match serde_json::from_slice(&heard).map_err(io::Error::other)? {
            Reply::Error { message } => return Ok(Ended::Refused(message)),
            Reply::Question(question) => {
                while work.try_join_next().is_some() {}
                // One of the tasks is the writer.
                if work.len() <= ANSWERED_MAX {
                    work.spawn(answer(question, nics.clone(), known.clone(), answers.clone()));
                }
            }
            _ => {}
        }
    }
}

async fn answer(question: Question, nics: Nics, known: Arc<Known>, answers: mpsc::Sender<Action>) {
    let Some(zone) = lock(&nics).get(&(question.mac, question.vlan)).cloned() else { return };
    if let Some(message) = known.answer(&zone, &question).await {
        let Question { mac, vlan, number, .. } = question;
        // Without the line, nobody waits for it.
        let _ = answers.send(Action::Answer { mac, vlan, number, message: Message::from(message) }).await;
    }
}

fn line(action: &Action) -> Vec<u8> {
    let mut line = serde_json::to_vec(action).expect("invariant: actions are plain data");
    line.push(b'\n');
    line
}
