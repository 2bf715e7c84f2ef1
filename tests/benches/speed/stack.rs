//! The gRPC stack without a broker: the same crates, the same stream, and a grant for every
//! acquire, whoever holds the lock. What is left of a figure beyond this one's is the broker.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use syncd_proto::{
    socket::Listener,
    v1::{
        Attached, ClientMessage, Granted, Opened, ServerMessage, State,
        broker_server::{Broker, BrokerServer},
        client_message::Request as Asked,
        server_message::Message,
    },
};
use tonic::{Request, Response, Status, Streaming, codegen::tokio_stream::Stream, service::Routes};

use crate::{
    daemon::runtime,
    worker::{Worker, answer},
};

/// The server, as a process of its own.
pub struct Stack {
    _server: Worker,
    path: PathBuf,
}

impl Stack {
    pub fn start(dir: &Path) -> Stack {
        let path = dir.join("stack.sock");
        let _ = std::fs::remove_file(&path);
        Stack { _server: Worker::role("stack", &[path.to_str().expect("a plain name")]), path }
    }

    pub fn client(&self, role: &str, args: &[&str]) -> Worker {
        let path = self.path.to_str().expect("a plain name");
        Worker::role(role, &[&[path], args].concat())
    }
}

/// Role: serves until its standard input ends.
pub fn serve(path: &str) {
    let runtime = runtime();
    let listener = {
        let _context = runtime.enter();
        Listener::bind(&path.parse().expect("a short path"), 0o600).expect("the path is free")
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                let socket = listener.accept().await.expect("a client connects");
                let routes = Routes::new(BrokerServer::new(Blind)).prepare();
                let service = TowerToHyperService::new(routes);
                let connection = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), service);
                tokio::spawn(connection);
            }
        })
    });
    answer(|_| Vec::new());
}

struct Blind;

#[tonic::async_trait]
impl Broker for Blind {
    type SessionStream = Replies;

    async fn session(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Replies>, Status> {
        Ok(Response::new(Replies { requests: request.into_inner(), seq: 0 }))
    }
}

struct Replies {
    requests: Streaming<ClientMessage>,
    seq: u64,
}

impl Stream for Replies {
    type Item = Result<ServerMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(Ok(asked)) = ready!(Pin::new(&mut self.requests).poll_next(cx)) else {
                return Poll::Ready(None);
            };
            let message = match asked.request {
                Some(Asked::Open(_)) => Message::Opened(Opened::default()),
                Some(Asked::Create(_)) => Message::Attached(Attached::default()),
                Some(Asked::Query(_)) => Message::State(State::default()),
                Some(Asked::Acquire(_)) => {
                    Message::Granted(Granted { token: asked.id, depth: 1, abandoned: None })
                }
                _ => continue,
            };
            self.seq += 1;
            let message = ServerMessage { seq: self.seq, id: asked.id, message: Some(message) };
            return Poll::Ready(Some(Ok(message)));
        }
    }
}
