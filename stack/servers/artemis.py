"""Apache ActiveMQ Artemis as the MQTT broker, with a durable journal: QoS 1 survives a crash of either side.

The address settings keep what a subscriber has not acknowledged: no queue is deleted for being idle, no message is
dropped for having been delivered too often.
"""

from __future__ import annotations

import os
from xml.sax.saxutils import escape

from stack import jars, probes
from stack.servers.kafka import LOGGING
from stack.spec import Endpoints, Place, Server

BROKER = """\
<?xml version="1.0" encoding="UTF-8"?>
<configuration xmlns="urn:activemq">
  <core xmlns="urn:activemq:core">
    <name>headrace</name>
    <persistence-enabled>true</persistence-enabled>
    <security-enabled>false</security-enabled>
    <journal-type>NIO</journal-type>
    <journal-datasync>true</journal-datasync>
    <journal-file-size>2M</journal-file-size>
    <journal-min-files>2</journal-min-files>
    <journal-pool-files>8</journal-pool-files>
    <journal-directory>{data}/journal</journal-directory>
    <bindings-directory>{data}/bindings</bindings-directory>
    <large-messages-directory>{data}/large</large-messages-directory>
    <paging-directory>{data}/paging</paging-directory>
    <critical-analyzer>false</critical-analyzer>
    <max-disk-usage>98</max-disk-usage>
    <global-max-size>48M</global-max-size>
    <acceptors>
      <acceptor name="mqtt">tcp://{address}?protocols=MQTT</acceptor>
    </acceptors>
    <address-settings>
      <address-setting match="#">
        <auto-create-addresses>true</auto-create-addresses>
        <auto-create-queues>true</auto-create-queues>
        <auto-delete-addresses>false</auto-delete-addresses>
        <auto-delete-queues>false</auto-delete-queues>
        <max-delivery-attempts>-1</max-delivery-attempts>
        <address-full-policy>PAGE</address-full-policy>
        <max-size-bytes>16M</max-size-bytes>
      </address-setting>
    </address-settings>
  </core>
</configuration>
"""


def prepare(place: Place) -> None:
    folder = place.data("artemis")
    (folder / "etc").mkdir(exist_ok=True)
    data = escape(str(folder / "data"))
    (folder / "etc" / "broker.xml").write_text(BROKER.format(data=data, address=place.address("mqtt")))
    (folder / "log4j2.properties").write_text(LOGGING)


def command(place: Place) -> list[str]:
    folder = place.data("artemis")
    start = place.java(
        "artemis", "128m", "-XX:TieredStopAtLevel=1", f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"
    )
    path = os.pathsep.join(map(str, jars.paths("artemis", place.cache)))
    return [*start, "-cp", path, "org.apache.activemq.artemis.core.server.embedded.Main", str(folder)]


def endpoints(place: Place) -> Endpoints:
    return {"mqtt": {"url": f"mqtt://{place.address('mqtt')}"}}


SERVER = Server(
    name="artemis",
    setting="mqtt.url",
    ports={"mqtt": 1883},
    jars=("artemis",),
    prepare=prepare,
    command=command,
    health=lambda place: probes.mqtt_ok(place.ports["mqtt"]),
    endpoints=endpoints,
)
