import java.sql.DriverManager;

/** Sends a query by JDBC and prints the last column of the answer's first row: Driver.java URL USER PASSWORD QUERY. */
class Driver {
    public static void main(String[] arguments) throws Exception {
        try (var connection = DriverManager.getConnection(arguments[0], arguments[1], arguments[2]);
                var statement = connection.createStatement();
                var answer = statement.executeQuery(arguments[3])) {
            answer.next();
            System.out.println(answer.getString(answer.getMetaData().getColumnCount()));
        }
    }
}
