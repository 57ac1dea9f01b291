//! The private D-Bus over which Ganesha is told what to export, and asked what it has loaded.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use quarry_contract::{AccessLevel, Network, ShareClient};
use quarry_daemon::pulse::{Limits, Patience};
use zbus::Structure;
use zbus::connection::Builder;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;
use zbus::proxy;

use crate::clients;
use crate::export_file::ClientLine;

/// What Ganesha's name on the bus begins with.
pub(crate) const NAME_PREFIX: &str = "quarry";
const NAME: &str = "quarry.org.ganesha.nfsd";
/// How long the bus itself may take.
const BUS_DEADLINE: Duration = Duration::from_secs(5);
/// Ganesha answers within this, all being well; after that it is looked at whether it shows life, and so often.
const GLANCE: Duration = Duration::from_millis(250);

/// What the bus itself says of a call to somebody who is not there, or not any more (D-Bus specification, "Message Bus
/// Specification"; dbus-protocol.h).
const ABSENT: [&str; 3] = [
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.NoReply",
];

/// Which of a client's options say what it may do: reading and writing, of data and of metadata (`EXPORT_OPTION_*_ACCESS`
/// of Ganesha).
const ACCESS_BITS: u32 = 0x1e0;
const READ_BITS: u32 = 0x0a0;

/// One client of an export: its text, three numbers of its address, anonymous ids, an expiry, options.
type Client = (String, i32, u8, u8, i32, u32, u32, u32, u32, u32);
/// What `DisplayExport` says: number, path, pseudo path, tag, clients.
type Displayed = (u16, String, String, String, Vec<Client>);

#[proxy(
    interface = "org.ganesha.nfsd.exportmgr",
    default_path = "/org/ganesha/nfsd/ExportMgr",
    default_service = "quarry.org.ganesha.nfsd"
)]
trait ExportManager {
    #[zbus(name = "UpdateExport")]
    fn update_export(&self, file: &str, expression: &str) -> zbus::Result<String>;
    #[zbus(name = "RemoveExport")]
    fn remove_export(&self, id: u16) -> zbus::Result<()>;
    #[zbus(name = "DisplayExport")]
    fn display_export(&self, id: u16) -> zbus::Result<Displayed>;
}

#[proxy(
    interface = "org.ganesha.nfsd.admin",
    default_path = "/org/ganesha/nfsd/admin",
    default_service = "quarry.org.ganesha.nfsd"
)]
trait Administration {
    #[zbus(name = "get_grace")]
    fn get_grace(&self) -> zbus::Result<(bool, bool, String)>;
}

/// Why a call had no good end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// Ganesha has answered, and refuses.
    #[error("Ganesha refuses: {0}")]
    Refused(String),
    /// The bus has answered in its place: nobody has Ganesha's name, or who had it ended during the call.
    #[error("Ganesha has ended")]
    Absent,
    /// No answer in time.
    #[error("Ganesha does not answer")]
    Silent,
    /// Nobody there.
    #[error("there is no way to Ganesha")]
    Gone(#[source] zbus::Error),
    /// An answer that is not understood.
    #[error("Ganesha says something unknown: {0}")]
    Unknown(String),
}

/// An export as Ganesha has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadedExport {
    pub(crate) path: String,
    pub(crate) pseudo: String,
    pub(crate) lines: Vec<ClientLine>,
}

/// A connection to the bus.
#[derive(Clone)]
pub(crate) struct Bus {
    connection: zbus::Connection,
    exports: ExportManagerProxy<'static>,
    administration: AdministrationProxy<'static>,
}

async fn in_time<T>(call: impl Future<Output = zbus::Result<T>>) -> Result<T, BusError> {
    match tokio::time::timeout(BUS_DEADLINE, call).await {
        Err(_) => Err(BusError::Silent),
        Ok(answer) => understood(answer),
    }
}

fn understood<T>(answer: zbus::Result<T>) -> Result<T, BusError> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(zbus::Error::MethodError(name, ..)) if ABSENT.contains(&name.as_str()) => Err(BusError::Absent),
        Err(zbus::Error::MethodError(name, said, _)) => {
            Err(BusError::Refused(said.unwrap_or_else(|| name.to_string())))
        }
        Err(error) => Err(BusError::Gone(error)),
    }
}

impl Bus {
    /// Connects, without waiting for anybody else to be there.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, BusError> {
        let address = format!("unix:path={}", socket.display());
        let connect = async {
            let connection = Builder::address(address.as_str()).build().await?;
            let exports = ExportManagerProxy::new(&connection).await?;
            let administration = AdministrationProxy::new(&connection).await?;
            Ok(Self {
                connection,
                exports,
                administration,
            })
        };
        in_time(connect).await
    }

    /// Returns the process that has Ganesha's name; `None` when nobody has.
    pub(crate) async fn ganesha(&self) -> Result<Option<u32>, BusError> {
        self.process_of(NAME).await
    }

    /// Returns the process of the bus itself.
    pub(crate) async fn daemon(&self) -> Result<Option<u32>, BusError> {
        self.process_of("org.freedesktop.DBus").await
    }

    async fn process_of(&self, name: &'static str) -> Result<Option<u32>, BusError> {
        let ask = async {
            let bus = DBusProxy::new(&self.connection).await?;
            let name = BusName::try_from(name)?;
            match bus.get_connection_unix_process_id(name).await {
                Ok(process) => Ok(Some(process)),
                Err(zbus::fdo::Error::NameHasNoOwner(_)) => Ok(None),
                Err(error) => Err(zbus::Error::from(error)),
            }
        };
        in_time(ask).await
    }

    /// Waits for Ganesha's answer as long as it shows life: on an overloaded disk an answer takes long, and whoever ends
    /// Ganesha for that only makes its clients wait longer.
    async fn answer<T>(&self, call: impl Future<Output = zbus::Result<T>>) -> Result<T, BusError> {
        let mut call = pin!(call);
        if let Ok(answer) = tokio::time::timeout(GLANCE, &mut call).await {
            return understood(answer);
        }
        let Some(pid) = self.ganesha().await? else {
            return in_time(call).await;
        };
        let mut patience = Patience::with(pid, Limits::default());
        loop {
            match tokio::time::timeout(GLANCE, &mut call).await {
                Ok(answer) => return understood(answer),
                Err(_) if patience.goes_on() => {}
                Err(_) => return Err(BusError::Silent),
            }
        }
    }

    /// Asks for something that needs nothing, to see whether there is an answer.
    pub(crate) async fn ping(&self) -> Result<(), BusError> {
        self.answer(self.administration.get_grace()).await.map(drop)
    }

    /// Has Ganesha read the file of an export. It replaces what it had, or adds it.
    pub(crate) async fn update(&self, file: &str, id: u16) -> Result<(), BusError> {
        let expression = format!("EXPORT(Export_Id={id})");
        let said = self.answer(self.exports.update_export(file, &expression)).await?;
        // It answers well, too, when it has left out what it did not understand.
        match said.as_str() {
            "1 exports updated" | "1 exports added" => Ok(()),
            _ => Err(BusError::Refused(said)),
        }
    }

    /// Has Ganesha end an export, and close what it has open on it. False when it has no such export.
    pub(crate) async fn remove(&self, id: u16) -> Result<bool, BusError> {
        match self.answer(self.exports.remove_export(id)).await {
            Ok(()) => Ok(true),
            Err(BusError::Refused(said)) => match self.display(id).await? {
                None => Ok(false),
                Some(_) => Err(BusError::Refused(said)),
            },
            Err(error) => Err(error),
        }
    }

    /// Returns the clients that Ganesha knows, ordered by address. Of which exports they are it does not remember.
    pub(crate) async fn clients(&self) -> Result<Vec<ShareClient>, BusError> {
        // Not by a proxy: what there is of each client depends on how Ganesha was built.
        let (path, interface) = ("/org/ganesha/nfsd/ClientMgr", "org.ganesha.nfsd.clientmgr");
        let asked = self
            .connection
            .call_method(Some(NAME), path, Some(interface), "ShowClients", &());
        let message = self.answer(asked).await?;
        let body = message.body();
        let body: Structure<'_> = body.deserialize().map_err(BusError::Gone)?;
        clients::parse(&body).map_err(BusError::Unknown)
    }

    /// Returns an export as Ganesha has it; `None` when it has none of this number.
    pub(crate) async fn display(&self, id: u16) -> Result<Option<LoadedExport>, BusError> {
        let (_, path, pseudo, _, clients) = match self.answer(self.exports.display_export(id)).await {
            Ok(displayed) => displayed,
            Err(BusError::Refused(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let line = |client: Client| -> Result<ClientLine, BusError> {
            let (text, options) = (client.0, client.8);
            let network = Network::parse(&text).map_err(BusError::Unknown)?;
            let level = match options & ACCESS_BITS {
                0 => None,
                READ_BITS => Some(AccessLevel::ReadOnly),
                ACCESS_BITS => Some(AccessLevel::ReadWrite),
                bits => return Err(BusError::Unknown(format!("access {bits:#x} for {text}"))),
            };
            Ok(ClientLine { network, level })
        };
        Ok(Some(LoadedExport {
            path,
            pseudo,
            lines: clients.into_iter().map(line).collect::<Result<_, _>>()?,
        }))
    }
}
