//! The gRPC services of the daemon.

use std::sync::Arc;

use syncd_proto::{
    DESCRIPTORS,
    v1::{broker_server::BrokerServer, inspect_server::InspectServer},
};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::{broker::Broker, inspect::InspectService, session::BrokerService};

/// The longest request that is read, in bytes; names and keys are the longest fields.
const MAX_MESSAGE: usize = 64 << 10;
/// The longest reply to an inspection, in bytes: gRPC's default limit in clients.
const MAX_REPLY: usize = 4 << 20;

/// The names that the health service knows; the empty one is the daemon as a whole.
pub(crate) const SERVICES: [&str; 3] = ["", "syncd.v1.Broker", "syncd.v1.Inspect"];

pub(crate) async fn routes(broker: &Arc<Broker>) -> (Routes, HealthReporter) {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let sessions = BrokerServer::new(BrokerService(broker.clone()));
    let inspect = InspectServer::new(InspectService(broker.clone()));
    let routes = Routes::new(sessions.max_decoding_message_size(MAX_MESSAGE))
        .add_service(
            inspect.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_REPLY),
        )
        .add_service(health_service)
        .add_service(reflection().build_v1().expect("the descriptors were compiled with this"))
        .add_service(reflection().build_v1alpha().expect("the descriptors were compiled with this"))
        .prepare();
    (routes, health)
}
