//! The protocol against a minimal broker with one lock and the real one's delivery rules. A seed
//! decides what happens: calls, withdrawals, deadlines, messages, broken connections.

use std::collections::BTreeSet;

use syncd_proto::v1::{
    Acquire, Error, ErrorCode, EventSet, Granted, client_message::Request, server_message::Message,
};

use super::{super::*, GRACE, LOCK, release};

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % n
    }
}

/// What the daemon keeps of a session.
#[derive(Default)]
struct Kept {
    connected: bool,
    last_id: u64,
    seq: u64,
    unacknowledged: VecDeque<ServerMessage>,
    handled: BTreeSet<u64>,
}

/// One lock and its queue.
#[derive(Default)]
struct Broker {
    sessions: Vec<Kept>,
    holder: Option<(usize, u64)>,
    queue: VecDeque<(usize, u64)>,
    tokens: u64,
    /// Messages on their way to each session.
    down: Vec<VecDeque<ServerMessage>>,
}

impl Broker {
    fn reply(&mut self, to: usize, id: u64, message: Message) {
        let kept = &mut self.sessions[to];
        kept.seq += 1;
        let message = ServerMessage { seq: kept.seq, id, message: Some(message) };
        kept.unacknowledged.push_back(message.clone());
        if kept.connected {
            self.down[to].push_back(message);
        }
    }

    fn pass_on(&mut self) {
        if self.holder.is_none()
            && let Some((to, id)) = self.queue.pop_front()
        {
            self.tokens += 1;
            self.holder = Some((to, self.tokens));
            let granted = Granted { token: self.tokens, depth: 1, abandoned: None };
            self.reply(to, id, Message::Granted(granted));
        }
    }

    fn handle(&mut self, from: usize, message: ClientMessage) {
        let ClientMessage { id, ack, request } = message;
        let request = request.expect("a request");
        if let Request::Open(open) = &request {
            return self.open(from, open);
        }
        let kept = &mut self.sessions[from];
        kept.unacknowledged.retain(|kept| kept.seq > ack);
        if matches!(request, Request::Acknowledge(_)) {
            return;
        }
        assert!(kept.handled.insert(id), "request {id} is handled twice");
        assert!(id > kept.last_id, "request {id} comes after {}", kept.last_id);
        kept.last_id = id;
        match request {
            Request::Acquire(_) => {
                self.queue.push_back((from, id));
                self.pass_on();
            }
            Request::Release(release) => {
                assert_eq!(
                    self.holder,
                    Some((from, release.token)),
                    "a release of what isn't held"
                );
                self.holder = None;
                if !release.quiet {
                    self.reply(from, id, Message::Done(v1::Done::default()));
                }
                self.pass_on();
            }
            Request::Cancel(cancel) => self.cancel(from, cancel.id),
            Request::EventSet(_) => self.reply(from, id, Message::Done(v1::Done::default())),
            other => unreachable!("{other:?}"),
        }
    }

    fn cancel(&mut self, from: usize, id: u64) {
        let cancelled = Error { code: ErrorCode::Cancelled.into(), ..Error::default() };
        if let Some(at) = self.queue.iter().position(|waiter| *waiter == (from, id)) {
            self.queue.remove(at);
            return self.reply(from, id, Message::Error(Box::new(cancelled)));
        }
        let mut kept = self.sessions[from].unacknowledged.iter_mut();
        let Some(sent) = kept.find(|sent| sent.id == id) else { return };
        if let Some(Message::Granted(granted)) = &sent.message {
            assert_eq!(self.holder, Some((from, granted.token)));
            sent.message = Some(Message::Error(Box::new(cancelled)));
            self.holder = None;
            self.pass_on();
        }
    }

    fn open(&mut self, from: usize, open: &Open) {
        let kept = &mut self.sessions[from];
        if !open.resume_key.is_empty() {
            let oldest = kept.unacknowledged.front().map_or(kept.seq + 1, |sent| sent.seq);
            assert!(open.resume_seq <= kept.seq && open.resume_seq + 1 >= oldest, "a gap");
            kept.unacknowledged.retain(|sent| sent.seq > open.resume_seq);
        }
        let opened = Opened {
            session: from as u64 + 1,
            resume_key: vec![1],
            last_id: kept.last_id,
            grace_us: GRACE.as_micros() as u64,
            ..Opened::default()
        };
        kept.connected = true;
        let again: Vec<_> = kept.unacknowledged.iter().cloned().collect();
        let opened = ServerMessage { seq: 0, id: 0, message: Some(Message::Opened(opened)) };
        self.down[from] = VecDeque::from([opened]);
        self.down[from].extend(again);
    }
}

/// A client, and what it believes.
struct Client {
    protocol: Protocol,
    connected: bool,
    up: VecDeque<ClientMessage>,
    calls: Vec<u64>,
    held: Vec<u64>,
}

struct World {
    dice: Dice,
    now: Instant,
    broker: Broker,
    clients: Vec<Client>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let client = |_| Client {
            protocol: Protocol::new(now, Open::default()),
            connected: false,
            up: VecDeque::new(),
            calls: Vec::new(),
            held: Vec::new(),
        };
        let mut broker = Broker::default();
        broker.sessions.resize_with(2, Kept::default);
        broker.down.resize_with(2, VecDeque::new);
        Self { dice: Dice::new(seed), now, broker, clients: (0..2).map(client).collect() }
    }

    /// What a shell does in one turn.
    fn turn(&mut self, who: usize) {
        let client = &mut self.clients[who];
        client.protocol.handle_timeout(self.now);
        if client.protocol.poll_connect(self.now) {
            client.connected = true;
            client.protocol.handle_connected();
        }
        if client.connected {
            while let Some(message) = client.protocol.poll_transmit() {
                client.up.push_back(message.clone());
            }
        }
        while client.protocol.poll_event().is_some() {}
        let mut open = Vec::new();
        for id in std::mem::take(&mut client.calls) {
            match client.protocol.poll_reply(id) {
                None => open.push(id),
                Some(Ok(Message::Granted(granted))) => client.held.push(granted.token),
                Some(Ok(Message::Done(_)) | Err(Failure::Overdue)) => {}
                Some(other) => panic!("{other:?}"),
            }
        }
        client.calls = open;
    }

    fn step(&mut self, who: usize) {
        let (choice, pick) = (self.dice.below(16), self.dice.below(1 << 20));
        let deadline = self.now + Duration::from_millis(self.dice.below(40) as u64);
        let Self { clients, broker, now, .. } = self;
        let client = &mut clients[who];
        match choice {
            0 | 1 if client.protocol.opened().is_some() => {
                let undo = Undo::Grant { handle: LOCK, owner: 1, unowned: false };
                let acquire = Request::Acquire(Acquire { handle: LOCK, ..Acquire::default() });
                let deadline = pick.is_multiple_of(2).then_some(deadline);
                client.calls.push(client.protocol.handle_request(acquire, Some(undo), deadline));
            }
            2 if client.protocol.opened().is_some() => {
                let set = Request::EventSet(EventSet { handle: 9 });
                client.calls.push(client.protocol.handle_request(set, None, None));
            }
            3 | 4 if !client.calls.is_empty() => {
                let id = client.calls.swap_remove(pick % client.calls.len());
                client.protocol.handle_withdraw(id);
            }
            5 | 6 if !client.held.is_empty() => {
                let token = client.held.swap_remove(pick % client.held.len());
                client.protocol.handle_post(release(token));
            }
            7..=9 => {
                if let Some(message) = client.up.pop_front() {
                    broker.handle(who, message);
                }
            }
            10..=13 => {
                if client.connected
                    && let Some(message) = broker.down[who].pop_front()
                {
                    client.protocol.handle_message(message);
                }
            }
            14 if pick.is_multiple_of(8) => {
                client.connected = false;
                client.up.clear();
                broker.down[who].clear();
                broker.sessions[who].connected = false;
                client.protocol.handle_disconnected(*now, End::Broken("cut".to_owned()));
            }
            15 => *now += Duration::from_millis(pick as u64 % 8),
            _ => {}
        }
        // A reply is collected at once, or later.
        if !pick.is_multiple_of(3) {
            self.turn(who);
        }
    }

    /// Delivers all messages and releases all holds.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.now += Duration::from_millis(300);
            for who in 0..2 {
                self.turn(who);
                let client = &mut self.clients[who];
                for token in std::mem::take(&mut client.held) {
                    client.protocol.handle_post(release(token));
                }
                while let Some(message) = self.clients[who].up.pop_front() {
                    self.broker.handle(who, message);
                }
                while let Some(message) = self.broker.down[who].pop_front() {
                    self.clients[who].protocol.handle_message(message);
                }
            }
            let idle = |client: &Client| {
                client.calls.is_empty() && !client.protocol.is_unsent() && client.held.is_empty()
            };
            if self.clients.iter().all(idle) && self.broker.down.iter().all(VecDeque::is_empty) {
                return;
            }
        }
        panic!("it never settles");
    }
}

#[test]
fn no_request_is_lost_or_doubled_and_no_grant_kept_whatever_breaks_or_is_withdrawn() {
    for seed in 1..=2000 {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..400 {
                let who = world.dice.below(2);
                world.step(who);
            }
            world.settle();
            let Broker { holder, queue, .. } = &world.broker;
            assert!(holder.is_none(), "{holder:?} is held by nobody who knows it");
            assert!(queue.is_empty(), "{queue:?} wait, and nobody knows");
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}
