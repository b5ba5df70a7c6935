CREATE TABLE IF NOT EXISTS customers (
  id bigint PRIMARY KEY,
  name text,
  email text,
  country text NOT NULL,
  segment text,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS devices (
  id text PRIMARY KEY,
  customer_id bigint,
  model text,
  site text,
  min_temperature double precision,
  max_temperature double precision,
  active boolean NOT NULL,
  installed_at timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS orders (
  id bigint PRIMARY KEY,
  customer_id bigint NOT NULL,
  country text NOT NULL,
  status text NOT NULL CHECK (status IN ('new', 'paid', 'shipped', 'delivered', 'cancelled')),
  amount numeric(12, 2) NOT NULL,
  currency text NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS order_lines (
  order_id bigint NOT NULL,
  line int NOT NULL,
  sku text NOT NULL,
  quantity int NOT NULL,
  unit_price numeric(10, 2) NOT NULL,
  PRIMARY KEY (order_id, line)
);
ALTER TABLE customers REPLICA IDENTITY FULL;
ALTER TABLE devices REPLICA IDENTITY FULL;
ALTER TABLE orders REPLICA IDENTITY FULL;
ALTER TABLE order_lines REPLICA IDENTITY FULL;
