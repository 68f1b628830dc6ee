//! A real Kubernetes control plane for tests and for the demo: etcd, kube-apiserver and
//! kube-controller-manager, built once from a Go module in `servers/`, started on loopback ports, and gone with
//! the process that started them, however it ends.
//!
//! - [`Release`]: the versions of Kubernetes, and which of them is chosen.
//! - [`Binaries`]: where the servers' executables are; builds what is missing.
//! - [`helm()`]: Helm, built likewise.
//! - [`prometheus()`]: Prometheus, of Debian's package.
//! - [`ControlPlane`]: the running servers, clients for them, and outages of them.
//! - [`Access`], [`User`]: somebody with given RBAC rules and no others.
//! - [`AuditEvent`]: what the API server was asked, and by whom.
//! - [`halt()`]: a process stands still.
//! - [`Leash`]: processes and a folder that do not outlive this process.
//! - [`Progress`]: what is being waited for.
//!
//! Nothing here knows the operator. Only Unix is supported.

mod access;
mod audit;
mod binaries;
mod controlplane;
mod credentials;
mod halt;
mod leash;
mod progress;
mod prometheus;

pub use access::{Access, User, rule};
pub use audit::{AuditEvent, AuditMark};
pub use binaries::{Binaries, RELEASE_VARIABLE, RELEASES, Release, cache, helm};
pub use controlplane::{ControlPlane, Processes};
pub use halt::halt;
pub use leash::Leash;
pub use progress::Progress;
pub use prometheus::{Prometheus, prometheus};
