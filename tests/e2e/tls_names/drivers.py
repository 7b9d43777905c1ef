"""Asks a database through a tunnel at 127.0.0.1 which TLS it speaks, verifying its certificate for NAME.

usage: drivers.py DRIVER NAME PORT CA USER PASSWORD DATABASE
"""

import asyncio
import socket
import ssl
import sys

POSTGRESQL = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
MARIADB = "SHOW STATUS LIKE 'Ssl_version'"


def psycopg(name, port, ca, **login):
    """libpq under it: the name from `host`, the address from `hostaddr`."""
    import psycopg

    with psycopg.connect(
        host=name, hostaddr="127.0.0.1", port=port, sslmode="verify-full", sslrootcert=ca,
        user=login["user"], password=login["password"], dbname=login["database"],
    ) as connection:
        return connection.execute(POSTGRESQL).fetchone()[0]


def asyncpg(name, port, ca, **login):
    """No parameter for the address: the name must lead to 127.0.0.1."""
    import asyncpg

    async def ask():
        trusted = ssl.create_default_context(cafile=ca)
        connection = await asyncpg.connect(host=name, port=port, ssl=trusted, **login)
        return await connection.fetchval(POSTGRESQL)

    return asyncio.run(ask())


def pymysql(name, port, ca, **login):
    """The name from `host`, and a socket that is connected already."""
    import pymysql

    connection = pymysql.connect(
        host=name, ssl=ssl.create_default_context(cafile=ca), defer_connect=True, **login
    )
    connection.connect(sock=socket.create_connection(("127.0.0.1", port)))
    with connection, connection.cursor() as cursor:
        cursor.execute(MARIADB)
        return cursor.fetchone()[1]


if __name__ == "__main__":
    driver, name, port, ca, user, password, database = sys.argv[1:]
    ask = {"psycopg": psycopg, "asyncpg": asyncpg, "pymysql": pymysql}[driver]
    print(ask(name, int(port), ca, user=user, password=password, database=database))
